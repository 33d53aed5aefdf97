"""Low-rank adapters in the forms that people have them: ours, peft's, kohya's and diffusers'.

* **ours**: ``adapter.safetensors`` (``MODULE.lora_A``, ``MODULE.lora_B``) and ``adapter.json`` (r, alpha, targets).
* **peft**: ``adapter_model.safetensors`` (``base_model.model.MODULE.lora_A.weight``) and ``adapter_config.json``; ranks
  and alphas by pattern, rank-stabilized scaling (rsLoRA) and DoRA are read, all that means another base or more than
  linear layers is refused by name.
* **kohya**: one file, ``lora_unet_MODULE_WITH_UNDERSCORES.lora_down.weight``, ``.lora_up.weight`` and ``.alpha``.
* **diffusers**: one file, ``transformer.MODULE.lora_A.weight`` or ``MODULE.lora.down.weight``, its settings in the
  header (``lora_adapter_metadata``).

Legend: R rank; O outputs; I inputs.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from irg.model.network.lora import LoraConfig
from irg.model.weights.config_files import read_json
from irg.model.weights.key_names import ROOTS, unwrapped_name
from irg.model.weights.manifest import PICKLES, TensorEntry, read_header, read_metadata
from irg.model.weights.tensor_reader import TensorReader

ADAPTER, SETTINGS = "adapter.safetensors", "adapter.json"
PEFT_ADAPTER, PEFT_SETTINGS = "adapter_model.safetensors", "adapter_config.json"
DIFFUSERS_ADAPTER, DIFFUSERS_SETTINGS = "pytorch_lora_weights.safetensors", "lora_adapter_metadata"
FORMS = f"{SETTINGS} (ours), {PEFT_SETTINGS} (peft), {DIFFUSERS_ADAPTER} (diffusers) or one .safetensors file (kohya)"

_KEY = re.compile(
    r"(?P<module>.+?)\.(?:lora_(?P<half>A|B|down|up)(?:\.default)?(?:\.weight)?"
    r"|lora\.(?P<old>down|up)\.weight|(?P<alpha>alpha)|(?P<magnitude>lora_magnitude_vector)(?:\.default)?(?:\.weight)?)"
)
_HALF = {"A": "a", "down": "a", "B": "b", "up": "b"}
_OTHER_KINDS = {  # a word in a tensor's name -> the kind of adapter that it belongs to
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "lora_mid": "LoRA of convolutions",
    "lora_embedding": "LoRA of an embedding",
    "dora_scale": "DoRA of LyCORIS",
    "oft_": "OFT",
    "boft_": "BOFT",
    "ia3_": "IA3",
    "vera_": "VeRA",
    "_lora.": "LoRA of attention processors",
}
_STEMS = ("lora_unet_", "lora_transformer_", "lora_te_", "lora_te1_", "lora_", "lycoris_")  # of kohya's names
_INNER = ("transformer", "unet", "diffusion_model")  # how libraries call the model that an adapter is for
_PLAIN_START = (None, True, False, "gaussian", "orthogonal", "eva")  # of init_lora_weights: the base stays as it is
_ONLY: dict[str, tuple[Any, ...]] = {  # what other values of peft's settings mean is not computed here
    "fan_in_fan_out": (None, False),
    "bias": (None, "none"),
    "lora_bias": (None, False),
    "modules_to_save": (None, []),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
    "use_qalora": (None, False),
    "use_bdlora": (None, False),
}


@dataclass(frozen=True)
class LowRank:
    """A linear layer's adapter: ``scale * B @ A`` is added to its weight [O, I]; with DoRA (Liu et al. 2024) the rows
    of the sum are then brought to the lengths ``magnitude``.
    """

    a: TensorEntry  # [R, I]
    b: TensorEntry  # [O, R]
    scale: float
    magnitude: TensorEntry | None = None  # [O]


Parts = dict[str, TensorEntry]  # of a module: a, b, perhaps alpha and magnitude


def read_layers(path: Path, modules: Iterable[str] | None) -> tuple[Path, dict[str, LowRank]]:
    """The file that an adapter (folder or file) has its tensors in, and its layers by the names of the model's modules.

    Args:
        modules: names of the model's linear layers; None keeps the adapter's own names.

    Raises:
        ValueError: there is no adapter, a file is damaged, or its kind or one of its settings is not supported.
    """
    file, settings_path = _files_of(path)
    found = _by_module(file, read_header(file))
    if settings_path is None:
        scale_of = _scales_of_file(file, found)
    elif settings_path.name == SETTINGS:
        scale_of = _own_scales(settings_path, file)
    else:
        scale_of = _peft_scales(read_json(settings_path), settings_path)
    resolve = _Names(list(modules)).resolve if modules is not None else lambda name, _: unwrapped_name(_plain(name))
    layers: dict[str, LowRank] = {}
    for name, parts in found.items():
        module = resolve(name, file)
        if module in layers:
            raise ValueError(f"{file}: {module} is changed twice")
        rank = parts["a"].shape[0] if parts["a"].shape else 0
        layers[module] = LowRank(parts["a"], parts["b"], scale_of(name, rank), parts.get("magnitude"))
    if not layers:
        raise ValueError(f"{file} holds no adapter")
    return file, layers


def _files_of(path: Path) -> tuple[Path, Path | None]:
    """An adapter's file of tensors, and its file of settings if it has one."""
    if path.is_file():
        if path.suffix in PICKLES:
            raise ValueError(f"{path} is a pickle, which can run code when it is opened, so it is not read")
        beside = {ADAPTER: SETTINGS, PEFT_ADAPTER: PEFT_SETTINGS}.get(path.name)
        return path, path.parent / beside if beside and (path.parent / beside).is_file() else None
    if not path.is_dir():
        raise ValueError(f"{path}: no such adapter: give a folder or a .safetensors file that is here")
    for settings, name in ((SETTINGS, ADAPTER), (PEFT_SETTINGS, PEFT_ADAPTER)):
        if (path / settings).is_file():
            return path / name, path / settings
    if (path / DIFFUSERS_ADAPTER).is_file():
        return path / DIFFUSERS_ADAPTER, None
    alone = sorted(path.glob("*.safetensors"))
    if len(alone) == 1:
        return alone[0], None
    several = f", not {len(alone)}: {', '.join(one.name for one in alone[:3])}" if alone else ""
    raise ValueError(f"{path} holds no adapter: it needs {FORMS}{several}")


# ---------------------------------------------------------------------------------------------------- names of tensors


def _by_module(path: Path, header: Mapping[str, TensorEntry]) -> dict[str, Parts]:
    """The tensors of a file by module; each module must have its two halves."""
    found: dict[str, Parts] = {}
    for key, entry in header.items():
        if other := next((kind for word, kind in _OTHER_KINDS.items() if word in key), None):
            raise ValueError(f"{path}: {key} belongs to {other}, which is not read: only LoRA and DoRA are")
        match = _KEY.fullmatch(key)
        if match is None:
            raise ValueError(f"{path}: {key} is not one of a pair lora_A, lora_B (or lora_down, lora_up)")
        half = match["half"] or match["old"]
        part = _HALF[half] if half else "alpha" if match["alpha"] else "magnitude"
        found.setdefault(match["module"], {})[part] = entry
    for name, parts in found.items():
        if not {"a", "b"} <= parts.keys():
            there = next(key for key in header if key.startswith(f"{name}."))
            raise ValueError(f"{path}: {there} is not one of a pair lora_A, lora_B (or lora_down, lora_up)")
        if not all(part.dtype.is_floating_point for part in (parts["a"], parts["b"])):
            raise ValueError(f"{path}: {name}'s adapter is not of a floating-point dtype")
    return found


def _plain(name: str) -> str:
    return name.removeprefix("base_model.model.")


class _Names:
    """Finds the model's layers by the names that libraries give them."""

    def __init__(self, modules: list[str]) -> None:
        self.modules = set(modules)
        self.flat = {module.replace(".", "_"): module for module in modules}

    def resolve(self, name: str, path: Path) -> str:
        """The module that is meant: by its whole name behind any prefix, by the unique end of one, or with underscores.

        Raises:
            ValueError: none is, or several could be.
        """
        plain = _plain(name)
        words = unwrapped_name(plain).split(".")
        for start, word in enumerate(words):
            if word in ROOTS and (whole := ".".join(words[start:])) in self.modules:
                return whole
        stem = next((name.removeprefix(stem) for stem in _STEMS if name.startswith(stem)), name)
        inner = ".".join(words[1:] if words[0] in _INNER else words)
        fitting = [module for flat, module in self.flat.items() if flat == stem]
        for end in (plain, inner):
            fitting = fitting or [module for module in self.modules if module.endswith(f".{end}")]
        fitting = fitting or [module for flat, module in self.flat.items() if flat.endswith(f"_{stem}")]
        if not fitting:
            raise ValueError(f"{path}: the model has no linear layer {name}")
        if len(fitting) > 1:
            raise ValueError(f"{path}: {name} may mean {' or '.join(sorted(fitting)[:2])}")
        return fitting[0]


# ------------------------------------------------------------------------------------------------------------ settings


def _own_scales(path: Path, file: Path) -> Callable[[str, int], float]:
    settings = read_json(path)
    try:
        config = LoraConfig(settings.get("r"), settings.get("alpha"), tuple(settings.get("targets", ())))  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
    return lambda name, rank: config.scale if rank == config.r else _refuse_rank(file, name, rank, config.r)


def _refuse_rank(path: Path, name: str, rank: int, wanted: Any) -> float:
    raise ValueError(f"{path}: {name} is of rank {rank}, the settings say {wanted}")


def _scales_of_file(path: Path, found: Mapping[str, Parts]) -> Callable[[str, int], float]:
    """A file alone: alpha / r by its alphas (kohya) or its header's settings (diffusers), else 1."""
    text = read_metadata(path).get(DIFFUSERS_SETTINGS)
    by_prefix: dict[str, dict[str, Any]] = {}
    if text is not None:
        try:
            settings = json.loads(text)
            for key, value in settings.items():
                prefix, _, name = key.partition(".")
                by_prefix.setdefault(prefix, {})[name] = value
        except (ValueError, AttributeError):
            raise ValueError(f"{path}: {DIFFUSERS_SETTINGS} in its header is no JSON object") from None
    scales = {prefix: _peft_scales(settings, path) for prefix, settings in by_prefix.items()}

    def scale(name: str, rank: int) -> float:
        if (alpha := found[name].get("alpha")) is not None:
            return float(TensorReader().read(alpha, torch.float32).reshape(-1)[0]) / max(rank, 1)
        prefix, _, inner = name.partition(".")
        return scales[prefix](inner, rank) if prefix in scales else 1.0

    return scale


def _peft_scales(settings: Mapping[str, Any], path: Path) -> Callable[[str, int], float]:
    """The scale of a module by peft's settings, once they are found to be ones that are computed here."""
    _check_peft(settings, path)
    config_r, config_alpha = settings.get("r"), settings.get("lora_alpha")
    try:
        LoraConfig(config_r, config_alpha, ())  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    ranks, alphas = settings.get("rank_pattern") or {}, settings.get("alpha_pattern") or {}
    stabilized = bool(settings.get("use_rslora"))  # alpha / sqrt(r), Kalajdzievski 2023

    def scale(name: str, rank: int) -> float:
        wanted, alpha = _by_pattern(ranks, name, config_r), _by_pattern(alphas, name, config_alpha)
        if rank != wanted:
            _refuse_rank(path, name, rank, wanted)
        return float(alpha / (math.sqrt(rank) if stabilized else rank))

    return scale


def _by_pattern(patterns: Mapping[str, Any], name: str, otherwise: Any) -> Any:
    """peft's rule: the first pattern that is the end of a module's name."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", name)), otherwise)


def _check_peft(settings: Mapping[str, Any], path: Path) -> None:
    kind, start = settings.get("peft_type", "LORA"), settings.get("init_lora_weights")
    if kind != "LORA":
        raise ValueError(f"{path}: peft_type {kind!r} is not supported: only LORA is")
    if start not in _PLAIN_START:
        raise ValueError(
            f"{path}: init_lora_weights {start!r} changed the base's weights too, so the adapter does not fit the "
            "published ones: save it with peft's path_initial_model_for_weight_conversion, which makes it a plain one"
        )
    if settings.get("alora_invocation_tokens"):
        raise ValueError(f"{path}: aLoRA acts behind its invocation tokens only, so it can't be merged")
    for name, plain in _ONLY.items():
        if settings.get(name) not in plain:
            raise ValueError(f"{path}: {name} {settings[name]!r} is not supported: merge it with peft itself")
