"""Our training step against the straight way of doing it: ``python bench/train.py``.

Both take the same samples, weights and noise, in the same process, in alternating order; before anything is timed their
losses and gradients are compared. **Straight** is how the published training code works (its method, written anew from
the fixtures' README): Python lists filled sample by sample and part by part, one dense mask a sample, one attention
call a sample with repeated key-value heads, and both experts' tokens in one tensor, gathered and scattered in every
layer. **Ours** is ``irg.learning``. A step is packing, noising, forward, backward, AdamW. See ``bench/README.md``.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from engine import machine, mid
from irg.learning.data.packing import assemble
from irg.learning.modes import MODES, EncodedImage, EncodedTrajectory, Mode, write
from irg.learning.objective import flow_targets, losses, total
from irg.model.network.config import ModelConfig, tiny
from irg.model.network.decoder import rotate
from irg.model.network.shared_prefix_attention import SharedPrefixAttention
from irg.model.network.unified import UnifiedModel
from irg.model.weights.initialize import random_model
from irg.sequence.layout import lay_out
from irg.sequence.parts import Latents, Part, Patches, Target, Text


@dataclass
class Options:
    """Time a training step of ours against the straight way."""

    model: Literal["mid", "tiny"] = "mid"
    """mid (random weights, 512 wide, 12 layers, 256 x 256 pixels) or tiny (a test)."""
    tokens: int = 3000
    """Of a pack, at most."""
    repeats: int = 3
    """Steps of each side; the order alternates."""
    threads: int | None = None
    """Of torch; default: its own choice."""
    dtype: Literal["float32"] = "float32"
    json: Path | None = None
    """Write all numbers to this file."""


@dataclass
class Samples:
    """The samples of one pack, their images by number."""

    config: ModelConfig
    samples: list[list[Part]]
    patches: dict[int, Tensor]
    latents: dict[int, Tensor]
    noise: Tensor
    normals: list[float]


@dataclass
class Case(Samples):
    """A pack, and the model that learns from it."""

    model: UnifiedModel


def build_case(options: Options) -> Case:
    """Random trajectories and random weights."""
    config = mid() if options.model == "mid" else tiny()
    return Case(**vars(build_samples(config, options.tokens)), model=random_model(config, 0).train())


def build_samples(config: ModelConfig, tokens: int) -> Samples:
    """Random trajectories of mixed sizes in the six modes, as many as fit."""
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    side, patch_side = config.max_latent_size, config.vit_max_num_patch_per_side - 2
    patches: dict[int, Tensor] = {}
    latents: dict[int, Tensor] = {}

    def image() -> EncodedImage:
        grid = tuple(int(n) for n in rng.integers(side // 2, side + 1, 2))
        seen = tuple(int(n) for n in rng.integers(patch_side // 2, patch_side + 1, 2))
        key = len(latents)
        latents[key] = torch.randn(grid[0] * grid[1], config.latent_values, generator=generator)
        patches[key] = torch.randn(seen[0] * seen[1], config.vit.patch_values, generator=generator)
        return EncodedImage(key, grid, seen)  # type: ignore[arg-type]

    def words(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.integers(4, config.decoder.vocab_size - 4, int(rng.integers(low, high))).tolist())

    samples: list[list[Part]] = []
    used = misses = 0
    while misses < 8:
        mode: Mode = MODES[int(rng.choice(6, p=np.array([0.5, 0.5, 1, 0.5, 0.5, 1]) / 4))]
        one = EncodedTrajectory(words(20, 21), words(5, 30), words(10, 100), image(), how_to_think=words(8, 9))
        two = EncodedTrajectory(
            *(one.system, one.prompt, one.thinking, one.image, words(10, 120), image()), how_to_improve=words(8, 9)
        )
        parts = write(mode, two if mode.startswith("improving") else one)
        n = len(lay_out(parts, config.grammar))
        if used + n > tokens:
            misses += 1
            continue
        samples.append(parts)
        used += n
    blocks = [p for sample in samples for p in sample if isinstance(p, Latents | Target)]
    noise = torch.randn(sum(p.tokens for p in blocks), config.latent_values, generator=generator)
    normals = rng.standard_normal(len(blocks)).tolist()
    return Samples(config, samples, patches, latents, noise, normals)


# ------------------------------------------------------------------------------------------------------ the two sides


def ours(case: Case) -> Tensor:
    """The loss of a pack, our way."""
    layouts = [lay_out(sample, case.config.grammar) for sample in case.samples]
    parts = [p for sample in case.samples for p in sample]
    normals = iter(case.normals)
    patches = [case.patches[p.content] for p in parts if isinstance(p, Patches)]
    latents = [case.latents[p.content] for p in parts if isinstance(p, Latents | Target)]
    pack = assemble(layouts, parts, patches, latents, lambda: next(normals), attention=SharedPrefixAttention)
    velocity = None
    if pack.clean_GD is not None:
        flow = flow_targets(pack.clean_GD, case.noise, pack.normal_G, 4.0)
        pack.batch.latents_GD, pack.batch.times_G, velocity = flow.noisy_GD, flow.times_G, flow.velocity_GD
    scored = losses(case.model, pack.batch, pack.attend, velocity, pack.loss_rows_L, pack.labels_L, pack.target_rows_M)
    return total(scored)[0]


@dataclass
class Lists:
    """What the straight way collects, token by token, in reading order."""

    ids: list[int]
    text_at: list[int]
    positions: list[int]
    patch_at: list[int]
    patch_cells: list[int]
    patch_lens: list[int]
    latent_at: list[int]
    latent_cells: list[int]
    times: list[float]
    noised: list[int]
    loss_at: list[int]
    labels: list[int]
    lens: list[int]
    masks: list[Tensor]


def straight_pack(case: Case) -> Lists:
    """Python lists, sample by sample."""
    special, normals = case.config.special, iter(case.normals)
    sides = case.config.max_latent_size, case.config.vit_max_num_patch_per_side
    out = Lists(*([] for _ in range(14)))  # type: ignore[arg-type]
    at = 0
    for sample in case.samples:
        position, first = 0, at
        lens: list[int] = []
        modes: list[str] = []
        for part in sample:
            if isinstance(part, Text):
                ids = [special.bos, *part.ids, special.eos]
                for i, token in enumerate(ids):
                    out.ids.append(token)
                    out.text_at.append(at)
                    out.positions.append(position)
                    if part.loss and i + 1 < len(ids):
                        out.loss_at.append(at)
                        out.labels.append(ids[i + 1])
                    at += 1
                    position += 1
                lens.append(len(ids))
                modes.append("causal")
                continue
            assert isinstance(part, Latents | Patches | Target)
            side = sides[isinstance(part, Patches)]
            out.ids += [special.start_of_image, special.end_of_image]
            out.text_at += [at, at + part.tokens + 1]
            cells = [r * side + c for r in range(part.grid[0]) for c in range(part.grid[1])]
            inside = list(range(at + 1, at + 1 + part.tokens))
            if isinstance(part, Patches):
                out.patch_at += inside
                out.patch_cells += cells
                out.patch_lens.append(part.tokens)
            else:
                target = isinstance(part, Target)
                out.latent_at += inside
                out.latent_cells += cells
                # `assemble` draws a number for targets alone
                out.times += [next(normals) if target else -float("inf")] * part.tokens
                out.noised += inside if target else []
            out.positions += [position] * (part.tokens + 2)
            at += part.tokens + 2
            position += not isinstance(part, Target)
            lens.append(part.tokens + 2)
            modes.append("noise" if isinstance(part, Target) else "full")
        out.lens.append(at - first)
        out.masks.append(nested_mask(lens, modes))
    return out


def nested_mask(lens: list[int], modes: list[str]) -> Tensor:
    """One sample's additive mask, block by block."""
    size, start = sum(lens), 0
    seen = torch.zeros(size, size, dtype=torch.bool)
    for n, mode in zip(lens, modes, strict=True):
        rows = slice(start, start + n)
        seen[rows, rows] = torch.ones(n, n).tril().bool() if mode == "causal" else True
        seen[rows, :start] = True
        start += n
    start = 0
    for n, mode in zip(lens, modes, strict=True):
        if mode == "noise":
            columns = slice(start, start + n)
            kept = seen[columns, columns].clone()
            seen[:, columns] = False
            seen[columns, columns] = kept
        start += n
    return torch.zeros(size, size).masked_fill_(~seen, -float("inf"))


def straight(case: Case) -> Tensor:
    """The loss of a pack, the straight way."""
    lists, model = straight_pack(case), case.model
    parts = [p for sample in case.samples for p in sample]
    size = sum(lists.lens)
    text_at, latent_at, patch_at = (torch.tensor(x) for x in (lists.text_at, lists.latent_at, lists.patch_at))
    x_TC = torch.zeros(size, case.config.decoder.hidden_size)
    x_TC[text_at] = model.language_model.model.embed_tokens(torch.tensor(lists.ids))
    if lists.patch_at:
        patches = torch.cat([case.patches[p.content] for p in parts if isinstance(p, Patches)])
        x_TC[patch_at] = model.read_patches(patches, torch.tensor(lists.patch_cells), lists.patch_lens)
    clean = torch.cat([case.latents[p.content] for p in parts if isinstance(p, Latents | Target)])
    flow = flow_targets(clean, case.noise, torch.tensor(lists.times), 4.0)
    x_TC[latent_at] = (
        model.vae2llm(flow.noisy_GD)
        + model.time_embedder(flow.times_G)
        + model.latent_pos_embed(torch.tensor(lists.latent_cells))
    )
    und_at = torch.cat([text_at, patch_at]).sort().values if lists.patch_at else text_at
    hidden_TC = straight_decoder(model, x_TC, torch.tensor(lists.positions), und_at, latent_at, lists)
    loss_at = torch.tensor(lists.loss_at)
    logits = model.logits(hidden_TC[loss_at])
    ce = F.cross_entropy(logits, torch.tensor(lists.labels), reduction="none").sum() / len(lists.labels)
    rows = torch.searchsorted(latent_at, torch.tensor(lists.noised))
    predicted = model.velocity(hidden_TC[latent_at[rows]], flow.noisy_GD[rows], flow.times_G[rows])
    mse = ((predicted - flow.velocity_GD[rows]) ** 2).mean(-1).sum() / max(1, len(rows))
    return ce + mse


def straight_decoder(
    model: UnifiedModel, x_TC: Tensor, positions_T: Tensor, und: Tensor, gen: Tensor, lists: Lists
) -> Tensor:
    """All layers over one tensor: gather by expert, scatter back, attend sample by sample."""
    decoder: Any = model.language_model.model
    rope = decoder.rope(positions_T, x_TC.dtype)
    groups = model.config.decoder.num_attention_heads // model.config.decoder.num_key_value_heads

    def split(layer: Any, name: str, x: Tensor) -> Tensor:
        a, b = getattr(layer, name)(x[und]), getattr(layer, name + "_moe_gen")(x[gen])
        out = x.new_zeros(len(x), *a.shape[1:])
        out[und], out[gen] = a, b
        return out

    for layer in decoder.layers:
        attention = layer.self_attn
        normed = split(layer, "input_layernorm", x_TC)
        q, k, v = (split(attention, name, normed).unflatten(-1, (-1, attention.size)) for name in ("q_proj", "k_proj", "v_proj"))  # fmt: skip # noqa: E501
        q, k = rotate(split(attention, "q_norm", q), rope), rotate(split(attention, "k_norm", k), rope)
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        outs = []
        for one_q, one_k, one_v, mask in zip(*(t.split(lists.lens) for t in (q, k, v)), lists.masks, strict=True):
            a, b, c = (t.transpose(0, 1)[None] for t in (one_q, one_k, one_v))
            outs.append(F.scaled_dot_product_attention(a, b, c, attn_mask=mask)[0].transpose(0, 1))
        x_TC = x_TC + split(attention, "o_proj", torch.cat(outs).flatten(-2))
        x_TC = x_TC + split(layer, "mlp", split(layer, "post_attention_layernorm", x_TC))
    return split(decoder, "norm", x_TC)


# -------------------------------------------------------------------------------------------- comparing and measuring


def agreement(case: Case) -> tuple[float, float]:
    """Largest relative differences of the losses and of any weight's gradient."""
    results = []
    for side in (straight, ours):
        case.model.zero_grad()
        loss = side(case)
        loss.backward()
        grads = {n: p.grad.clone() for n, p in case.model.named_parameters() if p.grad is not None}
        results.append((loss.item(), grads))
    case.model.zero_grad()
    (a, grads_a), (b, grads_b) = results
    scale = max(g.norm().item() for g in grads_a.values())
    apart = max((grads_a[n] - grads_b[n]).norm().item() / scale for n in grads_a)
    return abs(a - b) / abs(a), apart


def timed(case: Case, side: Callable[[Case], Tensor], optimizer: torch.optim.Optimizer) -> tuple[float, float]:
    """Seconds of one step, by the clock and of this process's processors (which other processes disturb less)."""
    started, used = time.perf_counter(), time.process_time()
    side(case).backward()
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - started, time.process_time() - used


def main(options: Options) -> int:
    """Compare, measure, print; the exit code is 1 when the two sides do not agree."""
    if options.threads:
        torch.set_num_threads(options.threads)
    case = build_case(options)
    about = machine(options)  # type: ignore[arg-type]
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    tokens = sum(len(lay_out(sample, case.config.grammar)) for sample in case.samples)
    parameters = sum(p.numel() for p in case.model.parameters())
    print(f"{options.model}: {parameters / 1e6:.1f} M parameters, {len(case.samples)} samples, {tokens} tokens a pack")
    loss, gradient = agreement(case)
    agree = loss < 1e-5 and gradient < 1e-4
    print(f"sides {'agree' if agree else 'DO NOT AGREE'}: loss within {loss:.1e}, gradients within {gradient:.1e}\n")
    if not agree:
        return 1
    optimizer = torch.optim.AdamW([p for p in case.model.parameters() if p.requires_grad], lr=1e-6)
    sides = {"straight": straight, "ours": ours}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for repeat in range(options.repeats):
        for name in sorted(sides, reverse=repeat % 2 == 0):
            seconds[name].append(timed(case, sides[name], optimizer))
    print("| a step | straight | ours | ratio |\n|---|---:|---:|---:|")
    for clock, index in (("clock", 0), ("processor", 1)):
        for what, pick in (("median", statistics.median), ("best", min)):
            a, b = (pick(pair[index] for pair in seconds[name]) for name in ("straight", "ours"))
            print(f"| {clock} seconds, {what} | {a:.2f} | {b:.2f} | {a / b:.2f}x |")
            print(f"| tokens a {clock} second, {what} | {tokens / a:.0f} | {tokens / b:.0f} | |")
    if options.json:
        report = {
            "machine": about,
            "tokens": tokens,
            "seconds": seconds,
            "agreement": {"loss": loss, "gradient": gradient},
        }
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
