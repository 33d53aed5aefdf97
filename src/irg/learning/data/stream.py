"""A data stream: draws samples by the mixture's weights, keeps a few waiting, and fills packs with them.

What a stream must know to go on (positions in the row sources, and which samples wait) is a few numbers, and part of
the checkpoint.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from irg.learning.data.packing import Attention, Pack, dummy_sample, pack_of
from irg.learning.data.row_source import Cursor, RowSource
from irg.learning.data.rows import BadRow, Rejections
from irg.learning.data.samples import Sample, SampleBuilder
from irg.learning.modes import IMPROVING, MODES, Mode
from irg.learning.recipe import Draw, TrainRecipe
from irg.randomness import numpy_generator
from irg.sequence.layout import lay_out

MAX_BAD_ROWS = 500
"""Broken rows in a row after which a mode's data is called unusable: reading on would take hours to say the same."""
RESERVE = 4
"""Samples of each mandatory mode at hand, so that one of them is likely to be short where a long sample needs room."""
MAX_TRIES = 8
"""Packs that a sample may fail to fit into, beside even the shortest samples of the mandatory modes in sight."""


@dataclass(frozen=True)
class Feed:
    """What all data streams of a run share: sources, builder, rules."""

    recipe: TrainRecipe
    sources: Mapping[str, RowSource]
    builder: SampleBuilder
    rejections: Rejections
    streams: int  # packs of a step, over all processes
    attention: Attention
    complete: bool  # every pack runs every part of the model: see :func:`.packing.dummy_sample`

    @property
    def modes(self) -> list[Mode]:
        """Modes of the mixture with a weight."""
        weights = self.recipe.mixture.weights()
        return [mode for mode in MODES if weights[mode] > 0]

    @property
    def mandatory(self) -> list[Mode]:
        """Modes that every pack has a sample of."""
        return [mode for mode in self.modes if mode in self.recipe.mixture.mandatory]

    def source_of(self, mode: Mode) -> RowSource:
        """Where a mode's rows come from."""
        return self.sources[source_name(self.recipe, mode)]


def source_name(recipe: TrainRecipe, mode: Mode) -> str:
    """The row source of a mode: conversations of its own, or trajectories of the right kind."""
    return mode if mode in recipe.conversations else "two-turn" if mode in IMPROVING else "one-turn"


class DataStream:
    """One stream of packs."""

    def __init__(self, feed: Feed, number: int, state: Mapping[str, Any] | None = None) -> None:
        self.feed, self.number = feed, number
        self.modes, self.mandatory = feed.modes, feed.mandatory
        weights = np.array([feed.recipe.mixture.weights()[mode] for mode in self.modes])
        self.shares = weights / weights.sum()
        positions = state["positions"] if state else {}
        self.cursors = {
            name: Cursor(source, number, feed.streams, positions.get(name)) for name, source in feed.sources.items()
        }
        self.drawn = int(state["drawn"]) if state else 0
        self.rejected = int(state["rejected"]) if state else 0
        self.waiting = [self._again(*entry) for entry in state["waiting"]] if state else []
        self.reserve = [self._again(*entry) for entry in state["reserve"]] if state else []  # of mandatory modes

    def _again(self, mode: Mode, number: int, row: int, stream: int, draw: int, tries: int) -> Sample:
        found = self.feed.source_of(mode).find(number, row)
        return replace(self.feed.builder.sample(mode, found, stream, draw), tries=tries)

    def draw(self, mode: Mode | None = None) -> Sample:
        """A new sample, of a given mode or one chosen by the mixture's weights. Broken rows are logged and passed over.

        Raises:
            ValueError: no row in a whole round, or of very many, was fit to be used.
        """
        feed, draw = self.feed, self.drawn
        self.drawn += 1
        if mode is None:
            rng = numpy_generator(feed.recipe.seed, Draw.MODE, self.number, draw)
            mode = self.modes[int(rng.choice(len(self.modes), p=self.shares))]
        cursor = self.cursors[source_name(feed.recipe, mode)]
        tried = min(cursor.source.rows, MAX_BAD_ROWS)
        for _ in range(tried):
            try:
                return feed.builder.sample(mode, cursor.next(), self.number, draw)
            except BadRow as bad:
                self._refuse(bad)
                last = bad
        raise ValueError(
            f"no row for {mode} is fit to be used ({tried} were tried{feed.rejections.listed}); the last: {last}"
        )

    def _refuse(self, bad: BadRow) -> None:
        self.rejected += 1
        self.feed.rejections.add(bad)

    def pack(self, step: int) -> Pack:
        """The next pack: a sample of every mandatory mode, the one that has waited longest, and what fills it best."""
        return self._assembled(self.fill(), step)

    def fill(self) -> list[Sample]:
        """The samples of the next pack."""
        self._look_ahead()
        chosen = self._firsts()
        while True:
            self._look_ahead()
            room = self.feed.recipe.tokens_per_pack - sum(map(len, chosen))
            picked = [self.waiting[i] for i in best_subset_sum([len(s) for s in self.waiting], room)]
            all_of_them = len(picked) == len(self.waiting)
            chosen += self._taken(picked)
            if not picked or not all_of_them:
                return chosen

    def _look_ahead(self) -> None:
        while len(self.waiting) < self.feed.recipe.lookahead:
            self.waiting.append(self.draw())
        for mode in self.mandatory:
            for _ in range(RESERVE - sum(s.address.mode == mode for s in self.reserve)):
                self.reserve.append(self.draw(mode))

    def _taken(self, samples: list[Sample]) -> list[Sample]:
        taken = {id(s) for s in samples}
        self.waiting = [s for s in self.waiting if id(s) not in taken]
        self.reserve = [s for s in self.reserve if id(s) not in taken]
        return samples

    def _firsts(self) -> list[Sample]:
        """A sample of every mandatory mode, and the one that has waited longest, so that none waits for ever.

        Of each mode one that the mixture drew, if any waits, else one of the reserve; but shorter ones where only they
        leave the room: long samples would else never find a pack, and at last nothing but them would wait.

        Raises:
            ValueError: samples of the mandatory modes do not fit into a pack together.
        """
        budget, mandatory = self.feed.recipe.tokens_per_pack, self.mandatory
        self._drop_hopeless(budget)
        options = {mode: self._of(mode) for mode in mandatory}
        if self.waiting:
            oldest = self.waiting[0]
            rest = [some for mode, some in options.items() if mode != oldest.address.mode]
            if (found := fitting(rest, budget - len(oldest))) is not None:
                return self._taken([*found, oldest])
        for _ in range(MAX_TRIES * len(mandatory)):
            if (found := fitting([*options.values()], budget)) is not None:
                return self._taken(found)
            longest = max(mandatory, key=lambda mode: min(map(len, options[mode])))
            self.reserve.append(self.draw(longest))
            options[longest].append(self.reserve[-1])
        if not mandatory:
            return []
        least = sum(min(map(len, some)) for some in options.values())
        raise ValueError(f"samples of the mandatory modes take {least} tokens: raise tokens_per_pack ({budget})")

    def _of(self, mode: Mode) -> list[Sample]:
        return [s for s in (*self.waiting, *self.reserve) if s.address.mode == mode]

    def _drop_hopeless(self, budget: int) -> None:
        """Refuse samples that again and again leave no room even for the shortest samples of the mandatory modes."""
        floor = {mode: min(map(len, self._of(mode))) for mode in self.mandatory}
        for sample in self.waiting:
            beside = sum(n for mode, n in floor.items() if mode != sample.address.mode)
            sample.tries += len(sample) + beside > budget
            if sample.tries >= MAX_TRIES:
                reason = f"{len(sample)} tokens in mode {sample.address.mode} leave no room in tokens_per_pack {budget}"
                self._refuse(BadRow(sample.where, f"{reason} beside the mandatory modes, which take at least {beside}"))
        self.waiting = [s for s in self.waiting if s.tries < MAX_TRIES]

    def _assembled(self, chosen: list[Sample], step: int) -> Pack:
        feed, config = self.feed, self.feed.builder.config
        samples, layouts = [s.parts for s in chosen], [s.layout for s in chosen]
        if feed.complete and (extra := dummy_sample(samples)):
            samples, layouts = [*samples, extra], [*layouts, lay_out(extra, config.grammar)]
        rng = numpy_generator(feed.recipe.seed, Draw.NOISE_LEVEL, step, self.number)
        modes = [s.address.mode for s in chosen]
        pack = pack_of(samples, layouts, config, rng.standard_normal, modes, feed.attention)
        pack.state = self.state()
        return pack

    def state(self) -> dict[str, Any]:
        """Plain data to resume from."""
        return {
            "positions": {name: cursor.state() for name, cursor in self.cursors.items()},
            "drawn": self.drawn,
            "rejected": self.rejected,
            "waiting": [[*vars(s.address).values(), s.tries] for s in self.waiting],
            "reserve": [[*vars(s.address).values(), s.tries] for s in self.reserve],
        }


def fitting(options: Sequence[Sequence[Sample]], room: int) -> list[Sample] | None:
    """One sample of each list, the first of it where there is room for that, else shorter ones; None if none fit."""
    chosen = [some[0] for some in options]
    shortest = [min(some, key=len) for some in options]
    while sum(map(len, chosen)) > room:
        savings = [len(a) - len(b) for a, b in zip(chosen, shortest, strict=True)]
        if not any(savings):
            return None
        best = savings.index(max(savings))
        chosen[best] = shortest[best]
    return chosen


def best_subset_sum(lengths: Sequence[int], room: int, grain: int = 16) -> list[int]:
    """Indices, in order, of the samples whose lengths add up to the most that fits into ``room``: subset sum, by
    dynamic programming over a bit set.

    Lengths are rounded up to whole grains, so the result is the best up to a grain a sample and never too long. Of
    equally full choices the one with earlier samples wins.
    """
    grains = room // grain
    sizes = [-(-length // grain) for length in lengths]
    inside = (1 << (grains + 1)) - 1
    reachable = [1]  # bit s of entry i: the first i samples can add up to s grains
    for size in sizes:
        reachable.append((reachable[-1] | (reachable[-1] << size)) & inside if size <= grains else reachable[-1])
    total = reachable[-1].bit_length() - 1
    chosen = []
    for index in range(len(sizes) - 1, -1, -1):
        if not reachable[index] >> total & 1:  # not to be had without this one
            chosen.append(index)
            total -= sizes[index]
    return chosen[::-1]
