"""From a mixture of modes to packs: which samples go into a step, and their tensors.

Everything random in step ``s`` comes from one generator seeded with (seed, s), or (seed, s, lane) for the further packs
of a step: a resumed run repeats an uninterrupted one without storing any sampler state.

Legend: T tokens; U, G tokens of the understanding and generation stream; D values per token; M noised target tokens;
L text tokens with loss.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from irg.learning.costs import Work, work_of
from irg.learning.data.in_memory import TrajectoryData
from irg.learning.modes import MODES, Mode, hide_plan, write
from irg.learning.recipe import Dropout, Mixture
from irg.model.network.flex_attention import FlexAttention
from irg.model.network.packed_attention import PackedAttention
from irg.model.network.shared_prefix_attention import SharedPrefixAttention
from irg.model.network.token_batch import StreamOrder, TokenBatch, token_batch
from irg.sequence.layout import IGNORE, TokenKind, TokenLayout, lay_out
from irg.sequence.parts import Latents, Part, Patches, Target, drop_conditions, noised_copies
from irg.sequence.special import Grammar

PackAttention = PackedAttention | SharedPrefixAttention | FlexAttention
Attention = Callable[[Sequence[TokenLayout], StreamOrder], PackAttention]

EMPTY = object()
"""Content of an image of zeros: see :func:`filler`."""


@dataclass
class Unread:
    """Images that the autoencoder has yet to read: float [3, H, W] each, and which one every block of latents shows
    (-1: zeros)."""

    pixels: list[Tensor]
    of_block: list[int]


@dataclass
class Pack:
    """One training step's inputs. ``clean_GD`` and ``normal_G`` are what :func:`.objective.flow_targets` takes;
    ``clean_GD`` waits for the images in ``unread``, if there are any."""

    batch: TokenBatch
    attend: PackAttention
    clean_GD: Tensor | None
    normal_G: Tensor
    loss_rows_L: Tensor
    labels_L: Tensor
    target_rows_M: Tensor
    modes: dict[str, int] = field(default_factory=dict)
    mode_of_loss_L: Tensor | None = None  # indices into MODES, like the next
    mode_of_target_M: Tensor | None = None
    tokens: int = 0
    longest: int = 0
    work: Work | None = None
    unread: Unread | None = None
    state: dict[str, Any] = field(default_factory=dict)  # of the data after this pack: what a checkpoint keeps

    def to(self, device: torch.device | str) -> "Pack":
        """The same pack on another device."""
        moved: dict[str, Any] = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, batch=self.batch.to(device), attend=self.attend.to(device), **moved)


class Packs(Protocol):
    """Where the trainer gets its packs from."""

    def pack(self, step: int, lane: int = 0) -> Pack:
        """The pack of a step's lane; every lane is asked for its steps in order."""
        ...

    @property
    def seal(self) -> str:
        """Changes with the rows."""
        ...

    def resume(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Go on where checkpointed lanes stood (one state per lane then; there may be more or fewer lanes now)."""
        ...


class Packer:
    """Draws samples until a token budget is full, from rows held in memory."""

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
        complete: bool = False,
        attention: Attention = PackedAttention,
    ) -> None:
        """``complete``: every pack runs every part of the model (see :func:`filler`)."""
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
        self.complete, self.attention = complete, attention

    @property
    def seal(self) -> str:
        """Changes with the rows: their number, order, kinds and prompts."""
        facts = repr((self.data.prompts, self.data.two_turns.tolist()))
        return hashlib.sha256(facts.encode()).hexdigest()[:16]

    def resume(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Nothing to do: a step's number says it all."""

    def pack(self, step: int, lane: int = 0) -> Pack:
        """The pack of a step: the same whenever it is asked for."""
        rng = np.random.default_rng([self.seed, step, lane] if lane else [self.seed, step])
        samples: list[list[Part]] = []
        modes: list[Mode] = []
        layouts: list[TokenLayout] = []
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
        d, trajectory = self.dropout, self.data.trajectory(int(rows[rng.integers(len(rows))]))
        parts = write(mode, hide_plan(mode, trajectory, rng.random, d.plan))
        parts = drop_conditions(parts, rng.random, text=d.text, latents=d.vae, patches=d.vit)
        return noised_copies(parts, self.copies)

    def _assemble(
        self, samples: list[list[Part]], layouts: list[TokenLayout], modes: list[Mode], rng: np.random.Generator
    ) -> Pack:
        if self.complete and (extra := filler(samples)):
            samples, layouts = [*samples, extra], [*layouts, lay_out(extra, self.grammar)]
        sizes = self.data.config.vit.patch_values, self.data.config.latent_values
        parts = [part for sample in samples for part in sample]
        patches = [
            torch.zeros(1, sizes[0]) if p.content is EMPTY else self.data.patches(p.content)
            for p in parts
            if isinstance(p, Patches)
        ]
        latents = [
            torch.zeros(1, sizes[1]) if p.content is EMPTY else self.data.latents(p.content)
            for p in parts
            if isinstance(p, Latents | Target)
        ]
        return assemble(layouts, parts, patches, latents, rng.standard_normal, modes, self.attention)


def filler(samples: Sequence[Sequence[Part]]) -> list[Part] | None:
    """A sample of two empty image tokens for a pack that has no ViT patches or no latents, else None.

    Sharded weights are gathered by all ranks together, so every rank must run every layer; the filler carries no loss
    and no other sample sees it, so no gradient changes.
    """
    kinds = {type(part) for sample in samples for part in sample}
    if Patches in kinds and (Latents in kinds or Target in kinds):
        return None
    return [Patches((1, 1), EMPTY), Latents((1, 1), EMPTY)]


def assemble(
    layouts: Sequence[TokenLayout],
    parts: Sequence[Part],
    patches: Sequence[Tensor],
    latents: Sequence[Tensor] | Unread,
    normal: Callable[[], float],
    modes: Sequence[Mode] = (),
    attention: Attention = PackedAttention,
) -> Pack:
    """Tensors of a pack. ``patches`` [N, D] and ``latents`` [N, D] are listed in reading order; ``normal`` draws the
    one number per target that decides its noise level (clean images get -inf). ``modes``: of the samples."""
    order = StreamOrder.of(layouts)
    levels = [
        (part.tokens, normal() if isinstance(part, Target) else -np.inf)
        for part in parts
        if isinstance(part, Latents | Target)
    ]
    normal_G = torch.tensor(np.repeat([n for _, n in levels], [k for k, _ in levels]), dtype=torch.float32)
    unread = latents if isinstance(latents, Unread) else None
    clean_GD = None if isinstance(latents, Unread) or not latents else torch.cat(list(latents)).to(torch.float32)
    batch = token_batch(layouts, order, torch.cat(list(patches)) if patches else None, clean_GD, None)
    labels_T = np.concatenate([layout.labels_T for layout in layouts])
    kinds_T = np.concatenate([layout.kinds_T for layout in layouts])
    lens = [len(layout) for layout in layouts]
    numbers = [MODES.index(mode) for mode in modes]
    mode_T = np.repeat([*numbers, *[-1] * (len(lens) - len(numbers))], lens)  # -1: the filler, or nobody said
    labels_U = labels_T[order.und_T]
    rows_L, rows_M = np.flatnonzero(labels_U != IGNORE), np.flatnonzero(kinds_T[order.gen_T] == TokenKind.NOISY)
    return Pack(
        batch=batch,
        attend=attention(layouts, order),
        clean_GD=clean_GD,
        normal_G=normal_G,
        loss_rows_L=torch.from_numpy(rows_L),
        labels_L=torch.from_numpy(labels_U[rows_L]),
        target_rows_M=torch.from_numpy(rows_M),
        modes={mode: list(modes).count(mode) for mode in dict.fromkeys(modes)},
        mode_of_loss_L=torch.from_numpy(mode_T[order.und_T][rows_L]),
        mode_of_target_M=torch.from_numpy(mode_T[order.gen_T][rows_M]),
        tokens=len(labels_T),
        longest=max(lens),
        work=work_of(layouts),
        unread=unread,
    )
