"""Configuration files of a model folder, in and out.

Two layouts are read. **irg**: one ``config.json`` with sections (``llm_config``, ``vit_config``, ``vae_config``,
``bagel_config``, ``special_token_ids``, ``vae_image_transform``, ``vit_image_transform``); this is also what is
written. **BAGEL**: ``llm_config.json`` and ``vit_config.json`` in Hugging Face's form; what they do not say is BAGEL's
own (autoencoder, patch sizes, resize rules), unless a ``config.json`` beside them has some of the sections above. Any
other ``config.json`` there (BAGEL's own was no valid JSON at first, then a Hugging Face configuration) is ignored.

Unknown keys are ignored: published files are full of them. Keys that would change the network are checked.
"""

import dataclasses
import logging
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from irg.model.network.autoencoder import CompactConfig, FluxConfig
from irg.model.network.config import DecoderConfig, ModelConfig, VitConfig
from irg.recipes import build
from irg.sequence.images import ResizeRule
from irg.sequence.special import SpecialTokens
from irg.text_files import parse_json

T = TypeVar("T")
_log = logging.getLogger("irg")

CONFIG, LLM_CONFIG, VIT_CONFIG = "config.json", "llm_config.json", "vit_config.json"
MAX_JSON_BYTES = 1 << 28
MAX_SIZE = 1 << 24  # no size of a real model is larger: not even a vocabulary or a context length
MAX_DEPTH = 1000
MAX_STAGES, MAX_BLOCKS = 16, 64  # of an autoencoder: stages, and residual blocks in one
MAX_SIDE = 4096  # of a position table

END_OF_TEXT = "<|endoftext|>"
_QWEN2_SPECIAL = {"<|im_start|>": 151644, "<|im_end|>": 151645, "<|vision_start|>": 151652, "<|vision_end|>": 151653}
_SPECIAL_KEYS = {  # config.json's names of SpecialTokens' fields
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "start_of_image": "start_of_image",
    "end_of_image": "end_of_image",
}
_RESIZE_KEYS = {"max_size": "max_image_size", "min_size": "min_image_size", "stride": "image_stride"}
_OWN_SECTIONS = {"bagel_config", "special_token_ids", "vae_image_transform", "vit_image_transform"}
_VAE_KINDS: dict[str, type[FluxConfig] | type[CompactConfig]] = {"flux": FluxConfig, "compact": CompactConfig}
# What these keys may say, where they are present: anything else is a network that this package does not have.
_FIXED: dict[str, dict[str, Any]] = {
    "llm_config": {
        "hidden_act": "silu",
        "qk_norm": True,
        "layer_module": "Qwen2MoTDecoderLayer",
        "rope_scaling": None,
        "attention_bias_qkv": True,
        "attention_bias_o": False,
        "use_sliding_window": False,
    },
    "vit_config": {"hidden_act": "gelu_pytorch_tanh", "rope": False},
    "bagel_config": {"connector_act": "gelu_pytorch_tanh", "interpolate_pos": False},
    "time_embedder": {"frequency_embedding_size": 256, "max_period": 10000},
}
# Defaults hide mistakes where a wrong value still gives a network of the right shapes: these must be said.
_REQUIRED = {
    DecoderConfig: ("rope_theta", "rms_norm_eps"),
    VitConfig: ("patch_size", "image_size"),
    SpecialTokens: (),
    FluxConfig: (),
    CompactConfig: (),
}


def is_bagel_layout(folder: Path) -> bool:
    """Whether the folder spreads its configuration over BAGEL's files."""
    return (folder / LLM_CONFIG).is_file()


def how_to_complete(folder: Path | str) -> str:
    """Advice for a fine-tune's folder or hub id that lacks what its base has."""
    return f"a fine-tune gets what it lacks from its base with irg model convert {folder} OUT --base BASE"


def has_own_sections(path: Path) -> bool:
    """Whether a ``config.json`` is this package's: BAGEL's own are another."""
    try:
        return bool(_OWN_SECTIONS & read_json(path).keys())
    except ValueError:
        return False


def read_config(folder: Path | str) -> ModelConfig:
    """Read a model folder's configuration, in either layout. No tensor file is opened.

    Raises:
        ValueError: a file is missing or no JSON, a value is missing, mistyped, absurd or describes another network.
            The message is one line and names the file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is not a model folder" + (": it is a file" if folder.is_file() else ": no such folder")
        )
    if is_bagel_layout(folder):
        return _read_bagel(folder)
    path = folder / CONFIG
    if not path.is_file():
        advice = f"; {how_to_complete(folder)}" if any(folder.glob("*.safetensors")) else ""
        raise ValueError(f"{folder} is not a model folder: it has neither {CONFIG} nor {LLM_CONFIG}{advice}")
    sections = read_json(path)
    if not isinstance(sections.get("llm_config"), Mapping):
        raise ValueError(f"{path}: section llm_config is missing, so this is not the configuration of a unified model")
    return _from_sections(sections, path)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        ValueError: it can't be read, is too large or is not that.
    """
    try:
        if not path.is_file() and path.exists():  # a pipe or a device has no end
            raise ValueError(f"{path}: not a file")
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"{path}: larger than {MAX_JSON_BYTES >> 20} MiB, so not what its name says")
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: can't be read: {error.strerror}") from None
    try:
        value = parse_json(content)
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def to_sections(config: ModelConfig) -> dict[str, Any]:
    """A configuration in the irg layout: the content of ``config.json``."""
    kind = next(name for name, cls in _VAE_KINDS.items() if isinstance(config.autoencoder, cls))
    return {
        "llm_config": dataclasses.asdict(config.decoder),
        "vit_config": dataclasses.asdict(config.vit),
        "vae_config": {"kind": kind, **dataclasses.asdict(config.autoencoder)},
        "bagel_config": {name: getattr(config, name) for name in _plain_fields()},
        "special_token_ids": {key: getattr(config.special, name) for name, key in _SPECIAL_KEYS.items()},
        "vae_image_transform": _resize_section(config.vae_resize),
        "vit_image_transform": _resize_section(config.vit_resize),
    }


def bagel_sections(config: ModelConfig) -> dict[str, dict[str, Any]]:
    """A configuration in BAGEL's layout: the content of each of its files, by name."""
    sections = to_sections(config)
    llm = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "qk_norm": True,
        "layer_module": "Qwen2MoTDecoderLayer",
    }
    vit = {"model_type": "siglip_vision_model", "hidden_act": "gelu_pytorch_tanh"}
    layers = config.vit.num_hidden_layers + 1  # BAGEL builds one fewer
    return {
        LLM_CONFIG: llm | sections.pop("llm_config"),
        VIT_CONFIG: vit | sections.pop("vit_config") | {"num_hidden_layers": layers},
        CONFIG: sections,
    }


# -------------------------------------------------------------------------------------------------------- the layouts


def _read_bagel(folder: Path) -> ModelConfig:
    """BAGEL's files. The ViT's config counts one layer that is not built; the reference sets qk-norm and the layer
    class by itself, whatever the file says."""
    llm_path, vit_path, extra_path = folder / LLM_CONFIG, folder / VIT_CONFIG, folder / CONFIG
    llm = {k: v for k, v in read_json(llm_path).items() if k not in ("qk_norm", "layer_module")}
    rope = llm.get("rope_parameters")  # newer Hugging Face versions
    if "rope_theta" not in llm and isinstance(rope, Mapping) and rope.get("rope_type", "default") == "default":
        llm["rope_theta"] = rope.get("rope_theta")
    if not vit_path.is_file():
        raise ValueError(f"{vit_path} is missing: a BAGEL folder has it beside {LLM_CONFIG}")
    vit = read_json(vit_path)
    vit = vit["vision_config"] if isinstance(vit.get("vision_config"), dict) else dict(vit)
    layers = vit.get("num_hidden_layers")
    if type(layers) is int:
        if layers < 2:
            raise ValueError(f"{vit_path}: num_hidden_layers {layers} leaves no layer: BAGEL builds one fewer")
        vit["num_hidden_layers"] = layers - 1

    extra = _own_sections(extra_path) if extra_path.is_file() else {}
    sections: dict[str, Any] = {
        k: extra[k] for k in ("bagel_config", "vae_image_transform", "vit_image_transform") if k in extra
    }
    if isinstance(extra.get("special_token_ids"), Mapping):
        sections["special_token_ids"] = extra["special_token_ids"]
    else:
        ids = special_ids(folder)
        sections["special_token_ids"] = dict(zip(_SPECIAL_KEYS.values(), ids, strict=True))
    sections["vae_config"] = extra.get("vae_config", {})
    sections |= {"llm_config": llm, "vit_config": vit}
    return _from_sections(sections, extra_path if extra else llm_path, llm_path, vit_path)


def _own_sections(path: Path) -> dict[str, Any]:
    """What BAGEL's files do not say, from a ``config.json`` of this package; nothing if it is any other."""
    try:
        sections = read_json(path)
    except ValueError as error:
        _report_ignored(str(error))
        return {}
    if not _OWN_SECTIONS & sections.keys():
        _report_ignored(f"{path}: has none of the sections {', '.join(sorted(_OWN_SECTIONS))}")
        return {}
    return sections


@lru_cache  # a folder's configuration is read several times while it is loaded
def _report_ignored(reason: str) -> None:
    _log.warning("%s; ignored: %s and %s have BAGEL's configuration", reason, LLM_CONFIG, VIT_CONFIG)


def special_ids(folder: Path) -> list[int]:
    """Ids of ``<|im_start|>``, ``<|im_end|>``, ``<|vision_start|>``, ``<|vision_end|>`` by the tokenizer files.

    Those the vocabulary lacks follow its last id, in this order, as the reference adds them; a tokenizer made of
    ``vocab.json`` and ``merges.txt`` adds ``<|endoftext|>`` before them. Without tokenizer files, Qwen2's ids.
    """
    ids: dict[str, int] = {}
    for name in ("vocab.json", "tokenizer.json", "added_tokens.json", "tokenizer_config.json"):
        if (path := folder / name).is_file():
            ids.update(_tokens_of(read_json(path), name))
    if not ids:
        return list(_QWEN2_SPECIAL.values())
    for name in _QWEN2_SPECIAL if (folder / "tokenizer.json").is_file() else (END_OF_TEXT, *_QWEN2_SPECIAL):
        ids.setdefault(name, max(ids.values()) + 1)
    return [ids[name] for name in _QWEN2_SPECIAL]


def _tokens_of(data: dict[str, Any], name: str) -> dict[str, int]:
    """token -> id, as one tokenizer file has it; anything of an unknown form is left out."""
    pairs: list[tuple[Any, Any]]
    if name == "tokenizer_config.json":
        added = data.get("added_tokens_decoder")
        added = added if isinstance(added, dict) else {}
        pairs = [(v.get("content"), int(k)) for k, v in added.items() if isinstance(v, dict) and k.isdecimal()]
    elif name == "tokenizer.json":
        model, added = data.get("model"), data.get("added_tokens")
        vocab = model.get("vocab") if isinstance(model, dict) else None
        pairs = list(vocab.items()) if isinstance(vocab, dict) else []
        pairs += [(a.get("content"), a.get("id")) for a in added or () if isinstance(a, dict)]
    else:
        pairs = list(data.items())
    return {token: index for token, index in pairs if isinstance(token, str) and type(index) is int}


def _from_sections(
    sections: dict[str, Any], path: Path, llm_path: Path | None = None, vit_path: Path | None = None
) -> ModelConfig:
    """A configuration from sections; the paths are those the sections came from, for messages."""
    llm_path, vit_path = llm_path or path, vit_path or path
    for name, where in (
        ("llm_config", llm_path),
        ("vit_config", vit_path),
        ("bagel_config", path),
        ("time_embedder", path),
    ):
        _check_fixed(name, sections.get(name, {}), where)
    decoder = _build(DecoderConfig, sections["llm_config"], f"{llm_path}: llm_config")
    head_dim = sections["llm_config"].get("head_dim")
    if head_dim not in (None, decoder.head_dim):
        raise ValueError(f"{llm_path}: head_dim {head_dim!r} must be hidden_size / num_attention_heads")

    vae_section = sections.get("vae_config", {})
    kind = vae_section.get("kind", "flux") if isinstance(vae_section, Mapping) else "flux"
    if not isinstance(kind, str) or kind not in _VAE_KINDS:
        raise ValueError(f"{path}: vae_config.kind must be one of {', '.join(_VAE_KINDS)}, got {kind!r}")
    if "special_token_ids" not in sections:
        raise ValueError(f"{path}: section special_token_ids is missing")
    options = {k: sections[k] for k in _plain_fields() if k in sections} | dict(sections.get("bagel_config", {}))
    values = {
        "decoder": decoder,
        "vit": _build(VitConfig, sections.get("vit_config"), f"{vit_path}: vit_config"),
        "autoencoder": _build(_VAE_KINDS[kind], vae_section, f"{path}: vae_config"),
        "special": _build(
            SpecialTokens, _renamed(sections["special_token_ids"], _SPECIAL_KEYS), f"{path}: special_token_ids"
        ),
    }
    for name in ("vae_resize", "vit_resize"):
        section = name.replace("resize", "image_transform")
        if section in sections:
            values[name] = _build(ResizeRule, _renamed(sections[section], _RESIZE_KEYS), f"{path}: {section}")
    _check_sizes(options, f"{path}: bagel_config")
    try:
        config = build(ModelConfig, values | {k: v for k, v in options.items() if k in _plain_fields()})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    _check_whole(config, path)
    return config


# -------------------------------------------------------------------------------------------------------- the details


def _plain_fields() -> list[str]:
    """Options of ModelConfig that are single values: they travel by their own names."""
    structured = {"decoder", "vit", "autoencoder", "special", "vae_resize", "vit_resize"}
    return [field.name for field in dataclasses.fields(ModelConfig) if field.name not in structured]


def _resize_section(rule: ResizeRule) -> dict[str, int]:
    return {_RESIZE_KEYS.get(name, name): value for name, value in dataclasses.asdict(rule).items()}


def _renamed(section: Any, keys: dict[str, str]) -> Any:
    """A section with the file's keys replaced by our field names."""
    if not isinstance(section, Mapping):
        return section
    names = {key: name for name, key in keys.items()}
    return {names.get(key, key): value for key, value in section.items()}


def _check_fixed(name: str, section: Any, path: Path) -> None:
    if not isinstance(section, Mapping):
        raise ValueError(f"{path}: {name} must be an object, got {type(section).__name__}")
    for key, wanted in _FIXED[name].items():
        if key in section and section[key] != wanted:
            raise ValueError(f"{path}: {name}.{key} {section[key]!r} is not supported: only {wanted!r} is")


def _build(cls: type[T], section: Any, where: str) -> T:
    """A configuration class from a section's known keys."""
    if not isinstance(section, Mapping):
        raise ValueError(f"{where}: expected an object, got {type(section).__name__}")
    names = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    known = {name: value for name, value in section.items() if name in names}
    _check_sizes(known, where)
    missing = [name for name in _REQUIRED.get(cls, ()) if name not in known]
    if missing:
        raise ValueError(f"{where}: {missing[0]} is missing")
    return build(cls, known, where)


def _check_sizes(section: Mapping[str, Any], where: str) -> None:
    """Refuse sizes that no real model has, before anything is built with them."""
    for name, value in section.items():
        blocks = name == "num_res_blocks" or name.endswith("_depths")
        limit = MAX_BLOCKS if blocks else MAX_DEPTH if name == "num_hidden_layers" else MAX_SIZE
        if isinstance(value, list) and len(value) > MAX_STAGES:
            raise ValueError(f"{where}: {name} lists {len(value)} sizes, a real model at most {MAX_STAGES}")
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, int) and abs(item) > limit:
                shown = item if abs(item) < 10**20 else "of many digits"
                raise ValueError(f"{where}: {name} {shown} is not a real model's (at most {limit})")


def _check_whole(config: ModelConfig, path: Path) -> None:
    """What no section can check alone."""
    ids = dataclasses.astuple(config.special)
    if len(set(ids)) != len(ids) or not all(0 <= i < config.decoder.vocab_size for i in ids):
        raise ValueError(
            f"{path}: special token ids {', '.join(map(str, ids))} must be four different ids below vocab_size "
            f"{config.decoder.vocab_size}"
        )
    if config.decoder.hidden_size % 4:
        raise ValueError(f"{path}: hidden_size {config.decoder.hidden_size} must be a multiple of 4")
    if config.vit.hidden_size % config.vit.num_attention_heads:
        raise ValueError(
            f"{path}: the ViT's hidden_size {config.vit.hidden_size} must be a multiple of num_attention_heads "
            f"{config.vit.num_attention_heads}"
        )
    positive = {
        "rms_norm_eps": config.decoder.rms_norm_eps,
        "rope_theta": config.decoder.rope_theta,
        "layer_norm_eps": config.vit.layer_norm_eps,
    } | {name: getattr(config, name) for name in ("latent_patch_size", "max_latent_size", "vit_max_num_patch_per_side")}
    for name, value in positive.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"{path}: {name} must be more than 0, got {value!r}")
    for name in ("latent_patch_size", "max_latent_size", "vit_max_num_patch_per_side"):
        if getattr(config, name) > MAX_SIDE:
            raise ValueError(f"{path}: {name} {getattr(config, name)} is not a real model's (at most {MAX_SIDE})")
    side = config.vit_max_num_patch_per_side
    longest = min(side, config.vit_resize.max_size // config.vit.patch_size)
    if (longest - 1) * (side + 1) >= config.vit.positions:  # the last cell of the largest square image
        raise ValueError(
            f"{path}: the ViT's image_size {config.vit.image_size} gives a table of {config.vit.positions} positions, "
            f"too small for images of {longest} patches a side, numbered by vit_max_num_patch_per_side {side}"
        )
    strides = (
        ("vae_image_transform", config.vae_resize, config.image_stride),
        ("vit_image_transform", config.vit_resize, config.vit.patch_size),
    )
    for name, rule, step in strides:
        if not 0 < rule.min_size <= rule.max_size or rule.stride < 1 or rule.stride % step:
            raise ValueError(f"{path}: {name} must have 0 < min <= max size and a stride that is a multiple of {step}")
        if rule.max_pixels < rule.stride**2:
            raise ValueError(f"{path}: {name} has max_pixels {rule.max_pixels}, which leaves no image")
