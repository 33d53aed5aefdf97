"""What a step costs: floating-point operations of a pack, memory of a GPU, and what GPUs can do.

Operations are counted exactly for matrix products and attention (two per multiply-add) and nothing else. Work that is
done again to save memory is not counted, as usual for MFU; neither is the frozen autoencoder.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from irg.learning.recipe import TrainRecipe
from irg.model.network.autoencoder import FluxConfig
from irg.model.network.config import ModelConfig
from irg.sequence.layout import IGNORE, SplitMode, TokenKind, TokenLayout

LOGITS_AT_ONCE = 1 << 26
"""Logits (numbers) that are held at a time: 256 MB in float32."""

PEAK = {  # dense bfloat16 TFLOP/s by the makers' data sheets; the first name found in the device's name counts
    "GB200": 2500.0,
    "B200": 2250.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "RTX 5090": 210.0,
    "RTX 4090": 165.0,
    "RTX 3090": 71.0,
}


@dataclass(frozen=True)
class Work:
    """The sizes of a pack that operations depend on. ``pairs``: (query, key) pairs that attend, of decoder and ViT."""

    und: int = 0
    gen: int = 0
    patches: int = 0
    labels: int = 0
    targets: int = 0
    pairs: int = 0
    vit_pairs: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


def work_of(layouts: Sequence[TokenLayout]) -> Work:
    """Sizes of a pack."""
    total = Work()
    for layout in layouts:
        kinds_T, pairs, vit_pairs, seen = layout.kinds_T, 0, 0, 0
        for start, n, mode in zip(
            np.cumsum([0, *layout.split_lens[:-1]]), layout.split_lens, layout.split_modes, strict=True
        ):
            causal, hidden = mode in (SplitMode.CAUSAL, SplitMode.SIBLING), mode in (SplitMode.NOISE, SplitMode.SIBLING)
            pairs += n * seen + (n * (n + 1) // 2 if causal else n * n)
            seen += 0 if hidden else n
            vit_pairs += int((kinds_T[start : start + n] == TokenKind.PATCH).sum()) ** 2
        gen = int((kinds_T >= TokenKind.LATENT).sum())
        total += Work(
            und=len(layout) - gen,
            gen=gen,
            patches=int((kinds_T == TokenKind.PATCH).sum()),
            labels=int((layout.labels_T != IGNORE).sum()),
            targets=int((kinds_T == TokenKind.NOISY).sum()),
            pairs=pairs,
            vit_pairs=vit_pairs,
        )
    return total


def forward_flops(config: ModelConfig, work: Work) -> dict[str, float]:
    """Operations of one forward by part: ``und``, ``gen`` (the experts' layers and what feeds them), ``attention``,
    ``head``, ``vit`` (with the connector)."""
    d, v = config.decoder, config.vit
    queries, keys = d.num_attention_heads * d.head_dim, d.num_key_value_heads * d.head_dim
    a_token = d.num_hidden_layers * d.hidden_size * (2 * queries + 2 * keys + 3 * d.intermediate_size)
    a_patch = v.num_hidden_layers * v.hidden_size * (4 * v.hidden_size + 2 * v.intermediate_size)
    a_patch += v.patch_values * v.hidden_size + (v.hidden_size + d.hidden_size) * d.hidden_size
    return {
        "und": 2.0 * work.und * a_token,
        "gen": 2.0 * work.gen * a_token + 2.0 * (work.gen + work.targets) * config.latent_values * d.hidden_size,
        "attention": 4.0 * work.pairs * queries * d.num_hidden_layers,
        "head": 2.0 * work.labels * d.hidden_size * d.vocab_size,
        "vit": 2.0 * work.patches * a_patch + 4.0 * work.vit_pairs * v.hidden_size * v.num_hidden_layers,
    }


def step_flops(config: ModelConfig, work: Work, frozen: Sequence[str] = (), adapters: bool = False) -> float:
    """Operations of forward and backward: three times the forward; twice where the weights themselves get no gradient
    (frozen parts, or everything under adapters)."""
    parts = forward_flops(config, work)
    still = set(parts) - {"attention"} if adapters else {"vit"} & {f.removesuffix("_model") for f in frozen}
    still |= {"und", "gen"} & set(frozen)
    return sum(flops * (2 if part in still else 3) for part, flops in parts.items())


def forward_again(config: ModelConfig, work: Work, recipe: TrainRecipe) -> float:
    """Operations that a step does again to save memory: with ``parallel.recompute`` full the layers' forward, with
    selective every second matrix product of it."""
    parts = forward_flops(config, work)
    products = parts["und"] + parts["gen"] + parts["vit"]
    return {"none": 0.0, "selective": products / 2, "full": products + parts["attention"]}[recipe.parallel.recompute]


def memory_bytes(
    config: ModelConfig, work: Work, parameters: int, trained: int, shards: int, recipe: TrainRecipe
) -> dict[str, float]:
    """Bytes a GPU needs, by what for. An estimate: what is held is counted exactly, what passes through roughly.

    Args:
        parameters, trained: numbers of all weights and of trained ones.
        shards: GPUs that share the weights.
    """
    d, low = config.decoder, 2 if recipe.parallel.precision == "bfloat16" else 4
    layer = 2 * d.hidden_size * (2 * d.hidden_size + 3 * d.intermediate_size)  # weights of both experts, about
    rest = parameters - d.num_hidden_layers * layer
    if recipe.lora.rank:
        base = {"nf4": 0.53, "bfloat16": 2.0, "float32": 4.0}[recipe.lora.base]
        held = base * (parameters - rest) + (4.0 if recipe.lora.base == "float32" else 2.0) * rest
        gathered = 2.0 * layer if recipe.lora.base == "nf4" else 0.0
    else:
        held = 4.0 * parameters / shards
        gathered = low * (2.0 * layer + 2 * max(rest, 0)) if shards > 1 or low == 2 else 0.0
    moments = 2.1 if recipe.optimizer.kind == "adamw8bit" else 4.0 if recipe.optimizer.kind == "muon" else 8.0
    tokens = work.und + work.gen
    a_layer = low * tokens * (8 * d.hidden_size + 4 * d.intermediate_size)
    kept = {"full": low * tokens * d.hidden_size, "selective": 0.5 * a_layer, "none": a_layer}[
        recipe.parallel.recompute
    ]
    v = config.vit
    vit_layers = 3 if recipe.parallel.recompute == "full" else v.num_hidden_layers
    vit = low * work.patches * (8 * v.hidden_size + 4 * v.intermediate_size)
    return {
        "weights": held,
        "gradients, moments, average": (4.0 + moments + 4.0) * trained / shards,
        "weights gathered for use": gathered,
        "activations": d.num_hidden_layers * kept + 1.5 * a_layer + vit * vit_layers,
        "logits": 4.0 * min(work.labels * d.vocab_size, LOGITS_AT_ONCE) * 3,
        "autoencoder": 0.17e9 + 2.2e9 if recipe.stream and isinstance(config.autoencoder, FluxConfig) else 0.0,
    }


def peak_flops(device: torch.device) -> float | None:
    """What the device can do in a second (dense bfloat16), if it is known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((tera * 1e12 for known, tera in PEAK.items() if known in name), None)
