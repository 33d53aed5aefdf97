"""What a model folder is: sizes, parameters by part, files, memory by mode and resolution. Of the weights only headers
are read, and some numbers, or all of a small model, to see whether they are finite.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from irg.model.network.autoencoder import FluxConfig
from irg.model.network.config import ModelConfig
from irg.model.placement.memory_plan import MemoryEstimate, MemoryMode, RequestShape, estimate
from irg.model.weights import quantize as quantizing
from irg.model.weights.checkpoint import CheckedFolder, check_folder
from irg.model.weights.config_files import is_bagel_layout
from irg.model.weights.finite import not_finite
from irg.model.weights.manifest import TensorEntry, format_size
from irg.model.weights.shards import DTYPE_NAMES
from irg.model.weights.tokenizer import MERGES, TOKENIZER, VOCAB, TextTokenizer
from irg.model.weights.weight_sets import AUTOENCODER

MODES: tuple[MemoryMode, ...] = ("bf16", "int8", "int4", "fp8", "offload")
# bytes, BAGEL-7B's IRG at TARGET_SIZE
TARGETS: dict[MemoryMode, float] = {"bf16": 40e9, "int8": 24e9, "int4": 16e9, "fp8": 24e9}
TARGET_SIZE = (1024, 1024)


@dataclass(frozen=True)
class FileFacts:
    """A weight file: its bytes, tensors and dtypes."""

    name: str
    bytes: int
    tensors: int
    dtypes: list[str]


@dataclass(frozen=True)
class ModelFacts:
    """All that ``irg model info`` shows. Parameters are counted by part; quantized ones by what they stand for.

    ``quantized`` is what the layers are once loaded, ``weight_format`` the other program's format in which files are.
    """

    folder: str
    layout: str
    architecture: list[str]
    parameters: dict[str, int]
    total: int
    autoencoder: int
    quantized: str | None
    weight_format: str | None
    tokenizer: str
    files: list[FileFacts]
    not_finite: list[str]
    all_numbers_checked: bool
    memory: dict[str, dict[MemoryMode, MemoryEstimate]]
    targets: dict[MemoryMode, bool]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; each estimate with its total."""
        memory = {
            size: {mode: asdict(needs) | {"total": needs.total} for mode, needs in modes.items()}
            for size, modes in self.memory.items()
        }
        return asdict(self) | {"memory": memory}


def describe(folder: Path, sizes: list[tuple[int, int]], weights: str | None = None) -> ModelFacts:
    """Describe a model folder; ``sizes`` are (width, height) of images to estimate memory for.

    Raises:
        ValueError: the folder is incomplete or damaged, or a size does not suit the model.
    """
    checked = check_folder(folder, weights)
    config = checked.config
    usual = config.vae_resize.max_size
    sizes = sizes or list(dict.fromkeys([(side, side) for side in (512, 768, 1024) if side < usual] + [(usual, usual)]))
    for width, height in sizes:
        if min(width, height) < config.image_stride or max(width, height) > config.max_image_size:
            raise ValueError(f"size {width}x{height} does not suit the model: sides go up to {config.max_image_size}")
    stored = quantizing.stored_quantization(checked.entries)
    modes: tuple[MemoryMode, ...] = MODES if stored is None else (stored, "offload")
    memory: dict[str, dict[MemoryMode, MemoryEstimate]] = {
        f"{width}x{height}": {mode: estimate(checked, mode, RequestShape(height, width)) for mode in modes}
        for width, height in sizes
    }
    bad, whole = not_finite(
        checked.entries | {f"{AUTOENCODER}: {k}": e for k, e in checked.autoencoder_entries.items()}
    )
    parameters, autoencoder = count_parameters(checked)
    total = sum(parameters.values())
    at_target_size = memory.get("{}x{}".format(*TARGET_SIZE), {}) if total > 10e9 else {}
    return ModelFacts(
        folder=str(folder),
        layout="BAGEL" if is_bagel_layout(folder) else "irg",
        architecture=architecture(config),
        parameters=parameters,
        total=total,
        autoencoder=autoencoder,
        quantized=stored,
        weight_format=checked.weight_format,
        tokenizer=_tokenizer(folder, config),
        files=_files(checked.entries) + _files(checked.autoencoder_entries),
        not_finite=bad,
        all_numbers_checked=whole,
        memory=memory,
        targets={mode: needs.total <= TARGETS[mode] for mode, needs in at_target_size.items() if mode in TARGETS},
    )


def count_parameters(checked: CheckedFolder) -> tuple[dict[str, int], int]:
    """Parameters of the unified model by part, and of the autoencoder."""
    parts = dict.fromkeys(
        ("understanding expert", "generation expert", "embedding and head", "ViT", "connector, tables, heads"), 0
    )
    for key, tensor in checked.model.state_dict().items():
        leaf = key.rpartition(".")[2]
        if leaf in ("scale", "zero") or (key.endswith("lm_head.weight") and _tied(checked)):
            continue
        packed = 2 if leaf == "qdata" and quantizing.stored_quantization(checked.entries) == "int4" else 1
        parts[_part(key)] += packed * tensor.numel()
    return parts, sum(t.numel() for t in checked.autoencoder.parameters())


def _tokenizer(folder: Path, config: ModelConfig) -> str:
    """Which tokenizer the folder has, or what is wrong with it: weights can be looked at without one."""
    try:
        tokenizer = TextTokenizer.from_folder(folder)
        tokenizer.check(config, folder)
    except ValueError as error:
        return f"UNUSABLE: {error}"
    names = (TOKENIZER,) if (folder / TOKENIZER).is_file() else (VOCAB, MERGES)
    return f"{' and '.join(names)}, {tokenizer.tokenizer.get_vocab_size()} tokens"


def _tied(checked: CheckedFolder) -> bool:
    return checked.config.decoder.tie_word_embeddings


def _part(key: str) -> str:
    if key.startswith("language_model"):
        if "_moe_gen" in key:
            return "generation expert"
        outside = "embed_tokens" in key or "lm_head" in key
        return "embedding and head" if outside else "understanding expert"
    return "ViT" if key.startswith("vit_model") else "connector, tables, heads"


def architecture(config: ModelConfig) -> list[str]:
    """One line for each network."""
    d, v, ae = config.decoder, config.vit, config.autoencoder
    kind = "FLUX" if isinstance(ae, FluxConfig) else "compact"
    return [
        f"decoder: {d.num_hidden_layers} layers of two experts, {d.hidden_size} wide, {d.num_attention_heads} heads "
        f"({d.num_key_value_heads} for keys and values) of {d.head_dim}, MLP {d.intermediate_size}, "
        f"vocabulary {d.vocab_size}{', tied head' if d.tie_word_embeddings else ''}",
        f"ViT: {v.num_hidden_layers} layers, {v.hidden_size} wide, {v.num_attention_heads} heads, "
        f"patches of {v.patch_size} in images up to {config.vit_resize.max_size}",
        f"autoencoder: {kind}, {ae.z_channels} channels, 1/{ae.downsample}; a latent token covers "
        f"{config.image_stride} x {config.image_stride} pixels, images up to {config.max_image_size}",
        f"prediction: {config.prediction}",
    ]


def _files(entries: dict[str, TensorEntry]) -> list[FileFacts]:
    by_file: dict[Path, list[TensorEntry]] = {}
    for entry in entries.values():
        by_file.setdefault(entry.file, []).append(entry)
    return [
        FileFacts(file.name, file.stat().st_size, len(own), sorted({DTYPE_NAMES[e.dtype] for e in own}))
        for file, own in by_file.items()
    ]


def in_lines(facts: ModelFacts) -> str:
    """The facts as text."""
    kinds = [f"{facts.layout} layout", *(kind for kind in (facts.weight_format, facts.quantized) if kind)]
    lines = [f"{facts.folder} ({', '.join(kinds)})", ""]
    lines += facts.architecture
    lines += ["", f"parameters: {_count(facts.total)}, and {_count(facts.autoencoder)} in the autoencoder"]
    lines += [f"  {name:26}{_count(count):>10}" for name, count in facts.parameters.items()]
    lines += ["", f"tokenizer: {facts.tokenizer}", "", "files:"]
    lines += [
        f"  {file.name:34}{format_size(file.bytes):>10}  {file.tensors} tensors, {', '.join(file.dtypes)}"
        for file in facts.files
    ]
    lines += ["", _numbers(facts)]
    lines += [
        "",
        "memory on a GPU for one IRG request (estimate: weights + cache of three guidance branches + activations or",
        "autoencoder, whichever is larger, + 0.7 GB for CUDA; thinking texts of 300 tokens):",
    ]
    head = f"  {'':12}{'':9}{'total':>9}{'weights':>9}{'cache':>9}{'activ.':>9}{'autoenc.':>9}{'host':>9}"
    lines.append(head.rstrip())
    for size, modes in facts.memory.items():
        for mode, n in modes.items():
            cells = (n.total, n.weights, n.cache, n.activations, n.autoencoder, n.host)
            lines.append(f"  {size:12}{mode:9}" + "".join(f"{format_size(c) if c else '-':>9}" for c in cells))
    if facts.targets:
        shown = ", ".join(
            f"{mode} {TARGETS[mode] / 1e9:.0f} GB {'kept' if kept else 'missed'}"
            for mode, kept in facts.targets.items()
        )
        lines.append(f"targets at 1024x1024, by this estimate: {shown}")
    return "\n".join(lines)


def _numbers(facts: ModelFacts) -> str:
    """Whether the weights can draw anything at all."""
    if facts.not_finite:
        more = f" and {len(facts.not_finite) - 3} more" if len(facts.not_finite) > 3 else ""
        return f"numbers: NOT FINITE (NaN or infinite) in {', '.join(facts.not_finite[:3])}{more}"
    looked = "" if facts.all_numbers_checked else " where looked: at the beginning and end of each tensor"
    return f"numbers: finite{looked}"


def _count(number: int) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3f} {unit}" if unit == "B" else f"{number / size:.1f} {unit}"
    return str(number)
