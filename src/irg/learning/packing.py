"""From a mixture of modes to packs: which samples go into a step, and their tensors.

Everything random in step ``s`` comes from one generator seeded with (seed, s): a resumed run repeats an uninterrupted
one without storing any sampler state.

Legend: T tokens; U, G tokens of the understanding and generation stream; D values per token; M noised target tokens;
L text tokens with loss.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from irg.learning.data import TrajectoryData
from irg.learning.modes import MODES, Mode, write
from irg.learning.recipe import Dropout, Mixture
from irg.model.attention import PackedAttention
from irg.model.inputs import StreamOrder, TokenBatch, token_batch
from irg.sequence.layout import IGNORE, Kind, Layout, lay_out
from irg.sequence.parts import Latents, Part, Patches, Target, drop_conditions, noised_copies
from irg.sequence.special import Grammar


@dataclass
class Pack:
    """One training step's inputs. ``clean_GD`` and ``normal_G`` are what :func:`.objective.flow_targets` takes."""

    batch: TokenBatch
    attend: PackedAttention
    clean_GD: Tensor | None
    normal_G: Tensor
    loss_rows_L: Tensor
    labels_L: Tensor
    target_rows_M: Tensor
    modes: dict[str, int] = field(default_factory=dict)
    mode_of_loss_L: Tensor | None = None
    tokens: int = 0

    def to(self, device: torch.device | str) -> "Pack":
        """The same pack on another device."""
        moved: dict[str, Any] = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, batch=self.batch.to(device), attend=self.attend.to(device), **moved)


class Packer:
    """Draws samples until a token budget is full."""

    def __init__(
        self,
        data: TrajectoryData,
        grammar: Grammar,
        mixture: Mixture,
        dropout: Dropout,
        seed: int,
        tokens_per_pack: int,
        max_tokens_per_sample: int,
        noise_copies: int = 1,
    ) -> None:
        weights = mixture.weights()
        self.modes: list[Mode] = [m for m in MODES if weights[m] > 0]
        self.rows_of = {mode: data.rows_for(mode) for mode in self.modes}
        missing = [mode for mode in self.modes if not len(self.rows_of[mode])]
        if missing:
            raise ValueError(f"the data has no trajectory for {', '.join(missing)}; set their weight to 0 or add data")
        self.shares = np.array([weights[m] for m in self.modes]) / sum(weights[m] for m in self.modes)
        self.mandatory = [m for m in self.modes if m in mixture.mandatory]
        self.data, self.grammar, self.dropout, self.seed = data, grammar, dropout, seed
        self.budget, self.longest, self.copies = tokens_per_pack, max_tokens_per_sample, noise_copies

    def pack(self, step: int) -> Pack:
        """The pack of a step: the same whenever it is asked for."""
        rng = np.random.default_rng([self.seed, step])
        samples: list[list[Part]] = []
        modes: list[Mode] = []
        layouts: list[Layout] = []
        tokens, misses = 0, 0
        while True:
            index = len(samples)
            forced = index < len(self.mandatory)
            mode = self.mandatory[index] if forced else self.modes[rng.choice(len(self.modes), p=self.shares)]
            parts = self._sample(mode, rng)
            layout = lay_out(parts, self.grammar)
            if len(layout) > self.longest or (not forced and tokens + len(layout) > self.budget):
                misses += 1
                if forced and misses > 64:
                    raise ValueError(
                        f"no sample of the mandatory mode {mode} was found with at most {self.longest} tokens; "
                        "raise max_tokens_per_sample"
                    )
                if not forced and (misses > 8 or (samples and tokens >= 0.9 * self.budget)):
                    break
                continue
            misses = 0 if forced else misses
            samples.append(parts)
            modes.append(mode)
            layouts.append(layout)
            tokens += len(layout)
        if not samples:
            raise ValueError(
                f"no sample fits: tokens_per_pack {self.budget}, max_tokens_per_sample {self.longest}; raise them"
            )
        return self._assemble(samples, layouts, modes, rng)

    def _sample(self, mode: Mode, rng: np.random.Generator) -> list[Part]:
        rows = self.rows_of[mode]
        parts = write(mode, self.data.trajectory(int(rows[rng.integers(len(rows))])))
        d = self.dropout
        parts = drop_conditions(parts, rng.random, text=d.text, latents=d.vae, patches=d.vit)
        return noised_copies(parts, self.copies)

    def _assemble(
        self, samples: list[list[Part]], layouts: list[Layout], modes: list[Mode], rng: np.random.Generator
    ) -> Pack:
        parts = [part for sample in samples for part in sample]
        patches = [self.data.patches(p.content) for p in parts if isinstance(p, Patches)]
        latents = [self.data.latents(p.content) for p in parts if isinstance(p, Latents | Target)]
        pack = assemble(layouts, parts, patches, latents, rng.standard_normal)
        pack.modes = {mode: modes.count(mode) for mode in dict.fromkeys(modes)}
        return pack


def assemble(
    layouts: Sequence[Layout],
    parts: Sequence[Part],
    patches: Sequence[Tensor],
    latents: Sequence[Tensor],
    normal: Callable[[], float],
) -> Pack:
    """Tensors of a pack. ``patches`` [N, D] and ``latents`` [N, D] are listed in reading order; ``normal`` draws the
    one number per target that decides its noise level (clean pictures get -inf)."""
    order = StreamOrder.of(layouts)
    levels = [
        (part.tokens, normal() if isinstance(part, Target) else -np.inf)
        for part in parts
        if isinstance(part, Latents | Target)
    ]
    normal_G = torch.tensor(np.repeat([n for _, n in levels], [k for k, _ in levels]), dtype=torch.float32)
    clean_GD = torch.cat(list(latents)).to(torch.float32) if latents else None
    batch = token_batch(layouts, order, torch.cat(list(patches)) if patches else None, clean_GD, None)
    labels_T = np.concatenate([layout.labels_T for layout in layouts])
    kinds_T = np.concatenate([layout.kinds_T for layout in layouts])
    labels_U = labels_T[order.und_T]
    rows_L = np.flatnonzero(labels_U != IGNORE)
    return Pack(
        batch=batch,
        attend=PackedAttention(layouts, order),
        clean_GD=clean_GD,
        normal_G=normal_G,
        loss_rows_L=torch.from_numpy(rows_L),
        labels_L=torch.from_numpy(labels_U[rows_L]),
        target_rows_M=torch.from_numpy(np.flatnonzero(kinds_T[order.gen_T] == Kind.NOISY)),
        tokens=len(labels_T),
    )
