"""Packs from streamed rows: a lane draws samples by the mixture's weights, keeps a few waiting, fills packs with them.

Rows are read, checked and their images decoded once, in a thread beside the training step; the autoencoder reads them
on the device, as part of the step. What a lane must know to go on (places in the shelves, and which samples wait) is a
few numbers, and part of the checkpoint.
"""

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from irg.learning.data.in_memory import fixed_texts, grids_of, patches_of
from irg.learning.data.packing import EMPTY, Attention, Pack, Unread, assemble, filler
from irg.learning.data.row_source import Cursor, Found, Shelf, conversation_shelf, dealt_anew, trajectory_shelves
from irg.learning.data.rows import BadRow, Rejections, checked, conversation, data_files, pixels_of
from irg.learning.data.subset_sum import fullest
from irg.learning.modes import IMPROVING, MODES, EncodedImage, EncodedTrajectory, Mode, hide_plan, write
from irg.learning.recipe import TrainRecipe
from irg.model.network.config import ModelConfig
from irg.model.network.packed_attention import PackedAttention
from irg.model.weights.profile import Profile
from irg.model.weights.tokenizer import TextTokenizer
from irg.sequence.images import to_tensor
from irg.sequence.layout import TokenLayout, lay_out
from irg.sequence.parts import Latents, Part, Patches, Target, Text, drop_conditions, noised_copies

GIVE_UP = 500
"""Broken rows in a row after which a mode's data is called unusable: reading on would take hours to say the same."""
RESERVE = 4
"""Samples of each mandatory mode at hand, so that one of them is likely to be short where a long sample needs room."""
TRIES = 8
"""Packs that a sample may fail to fit into, beside even the shortest samples of the mandatory modes in sight."""


@dataclass(frozen=True, eq=False)
class Pixels:
    """A decoded image, uint8 [H, W, 3], at the size the autoencoder reads."""

    values: np.ndarray


@dataclass(frozen=True)
class Address:
    """Which sample it is: the mode, the row, and the draw that decided its dropout. Enough to make it again."""

    mode: Mode
    unit: int
    row: int
    lane: int
    draw: int


@dataclass
class Sample:
    """A sample that waits for its pack. ``tries``: packs it was too long for."""

    address: Address
    parts: list[Part]
    layout: TokenLayout
    where: str
    tries: int = 0

    def __len__(self) -> int:
        return len(self.layout)


class Bakery:
    """Makes samples from rows: texts to ids, images to pixels, a mode's parts, dropout."""

    def __init__(self, recipe: TrainRecipe, config: ModelConfig, tokenizer: TextTokenizer, profile: Profile) -> None:
        self.recipe, self.config, self.tokenizer = recipe, config, tokenizer
        self.fixed = fixed_texts(tokenizer, profile)
        self.limit = min(recipe.max_tokens_per_sample, recipe.tokens_per_pack)

    def sample(self, mode: Mode, found: Found, lane: int, draw: int) -> Sample:
        """A row as a sample of a mode.

        Raises:
            BadRow: a part is missing or broken, or the sample is too long.
        """
        rng, d = np.random.default_rng([self.recipe.seed, 3, lane, draw]), self.recipe.dropout
        if "conversation" in found.values:
            whole = self._conversation(found)
        else:
            whole = write(mode, hide_plan(mode, self._trajectory(found), rng.random, d.plan))
        parts = drop_conditions(whole, rng.random, text=d.text, latents=d.vae, patches=d.vit)
        parts = noised_copies(parts, self.recipe.noise_copies)
        try:
            layout = lay_out(parts, self.config.grammar)
        except ValueError as error:
            raise BadRow(found.where, str(error)) from None
        if len(layout) > self.limit:
            which = "max_tokens_per_sample" if self.limit < self.recipe.tokens_per_pack else "tokens_per_pack"
            raise BadRow(found.where, f"{len(layout)} tokens in mode {mode}, more than {which} {self.limit}")
        return Sample(Address(mode, found.unit, found.row, lane, draw), parts, layout, found.where)

    def _image(self, image: bytes, where: str) -> EncodedImage:
        pixels = Pixels(pixels_of(image, where, self.config.vae_resize))
        return EncodedImage(pixels, *grids_of(pixels.values.shape[0], pixels.values.shape[1], self.config))

    def _trajectory(self, found: Found) -> EncodedTrajectory:
        row = checked(found.values, found.where)
        encode = self.tokenizer.encode
        return EncodedTrajectory(
            prompt=encode(row.prompt),
            thinking=encode(row.thinking),
            image=self._image(row.image, row.where),
            reflection=None if row.reflection is None else encode(row.reflection),
            improved=None if row.improved is None else self._image(row.improved, row.where),
            **self.fixed,
        )

    def _conversation(self, found: Found) -> list[Part]:
        parts: list[Part] = []
        for piece in conversation(found.values["conversation"], found.where):
            if piece.text is not None:
                parts.append(Text(self.tokenizer.encode(piece.text), piece.loss))
            else:
                assert piece.image is not None
                image = self._image(piece.image, found.where)
                parts += [image.drawn()] * piece.loss
                parts += image.read(vit=piece.vit, vae=piece.vae)
        return parts


class Lane:
    """One stream of packs."""

    def __init__(self, packs: "StreamPacks", lane: int, state: Mapping[str, Any] | None = None) -> None:
        self.packs, self.lane = packs, lane
        places = state["places"] if state else {}
        self.cursors = {
            name: Cursor(shelf, lane, packs.lanes, places.get(name)) for name, shelf in packs.shelves.items()
        }
        self.drawn = int(state["drawn"]) if state else 0
        self.rejected = int(state["rejected"]) if state else 0
        self.waiting = [self._again(*entry) for entry in state["waiting"]] if state else []
        self.reserve = [self._again(*entry) for entry in state["reserve"]] if state else []  # of mandatory modes

    def _again(self, mode: Mode, unit: int, row: int, lane: int, draw: int, tries: int) -> Sample:
        found = self.packs.shelf_of(mode).find(unit, row)
        return replace(self.packs.bakery.sample(mode, found, lane, draw), tries=tries)

    def draw(self, mode: Mode | None = None) -> Sample:
        """A new sample, of a given mode or one chosen by the mixture's weights. Broken rows are logged and passed over.

        Raises:
            ValueError: no row in a whole round, or of very many, was fit to be used.
        """
        packs, draw = self.packs, self.drawn
        self.drawn += 1
        if mode is None:
            rng = np.random.default_rng([packs.recipe.seed, 4, self.lane, draw])
            mode = packs.modes[int(rng.choice(len(packs.modes), p=packs.shares))]
        cursor = self.cursors[packs.shelf_name(mode)]
        tried = min(cursor.shelf.rows, GIVE_UP)
        for _ in range(tried):
            try:
                return packs.bakery.sample(mode, cursor.next(), self.lane, draw)
            except BadRow as bad:
                self._refuse(bad)
                last = bad
        raise ValueError(
            f"no row for {mode} is fit to be used ({tried} were tried{packs.rejections.listed}); the last: {last}"
        )

    def _refuse(self, bad: BadRow) -> None:
        self.rejected += 1
        self.packs.rejections.add(bad)

    def pack(self, step: int) -> Pack:
        """The next pack: a sample of every mandatory mode, the one that has waited longest, and what fills it best."""
        self._look_ahead()
        chosen = self._firsts()
        while True:
            self._look_ahead()
            room = self.packs.recipe.tokens_per_pack - sum(map(len, chosen))
            picked = [self.waiting[i] for i in fullest([len(s) for s in self.waiting], room)]
            all_of_them = len(picked) == len(self.waiting)
            chosen += self._taken(picked)
            if not picked or not all_of_them:
                return self._assembled(chosen, step)

    def _look_ahead(self) -> None:
        while len(self.waiting) < self.packs.recipe.lookahead:
            self.waiting.append(self.draw())
        for mode in self.packs.mandatory:
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
        budget, mandatory = self.packs.recipe.tokens_per_pack, self.packs.mandatory
        self._drop_hopeless(budget)
        options = {mode: self._of(mode) for mode in mandatory}
        if self.waiting:
            oldest = self.waiting[0]
            rest = [some for mode, some in options.items() if mode != oldest.address.mode]
            if (found := fitting(rest, budget - len(oldest))) is not None:
                return self._taken([*found, oldest])
        for _ in range(TRIES * len(mandatory)):
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
        floor = {mode: min(map(len, self._of(mode))) for mode in self.packs.mandatory}
        for sample in self.waiting:
            beside = sum(n for mode, n in floor.items() if mode != sample.address.mode)
            sample.tries += len(sample) + beside > budget
            if sample.tries >= TRIES:
                reason = f"{len(sample)} tokens in mode {sample.address.mode} leave no room in tokens_per_pack {budget}"
                self._refuse(BadRow(sample.where, f"{reason} beside the mandatory modes, which take at least {beside}"))
        self.waiting = [s for s in self.waiting if s.tries < TRIES]

    def _assembled(self, chosen: list[Sample], step: int) -> Pack:
        packs = self.packs
        samples, layouts = [s.parts for s in chosen], [s.layout for s in chosen]
        if packs.complete and (extra := filler(samples)):
            samples, layouts = [*samples, extra], [*layouts, lay_out(extra, packs.config.grammar)]
        parts = [part for sample in samples for part in sample]
        patches = [
            torch.zeros(1, packs.config.vit.patch_values)
            if p.content is EMPTY
            else patches_of(p.content.values, packs.config)
            for p in parts
            if isinstance(p, Patches)
        ]
        shown = [p.content for p in parts if isinstance(p, Latents | Target)]
        numbers = {id(c): i for i, c in enumerate({id(c): c for c in shown if c is not EMPTY}.values())}
        contents = {id(c): c for c in shown if c is not EMPTY}
        unread = Unread([_tensor(c) for c in contents.values()], [numbers.get(id(c), -1) for c in shown])
        rng = np.random.default_rng([packs.recipe.seed, 5, step, self.lane])
        modes = [s.address.mode for s in chosen]
        pack = assemble(layouts, parts, patches, unread if shown else [], rng.standard_normal, modes, packs.attention)
        pack.state = self.state()
        return pack

    def state(self) -> dict[str, Any]:
        """Plain data to resume from."""
        return {
            "places": {name: cursor.state() for name, cursor in self.cursors.items()},
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


def _tensor(pixels: Pixels) -> torch.Tensor:
    return to_tensor(Image.fromarray(pixels.values))


class StreamPacks:
    """Packs of all lanes this process runs; the next step's are made while a step is taken."""

    def __init__(
        self,
        recipe: TrainRecipe,
        config: ModelConfig,
        tokenizer: TextTokenizer,
        profile: Profile,
        rejections: Rejections,
        lanes: int = 1,
        complete: bool = False,
        attention: Attention = PackedAttention,
        ahead: bool = True,
    ) -> None:
        """Args:
            lanes: packs of a step, over all processes.
            complete: see :func:`irg.learning.data.packing.filler`.
            ahead: make packs in a thread, one step ahead.

        Raises:
            ValueError: a source is missing or of another kind, or a mode has no rows.
        """
        self.recipe, self.config, self.rejections = recipe, config, rejections
        self.lanes, self.complete, self.attention = lanes, complete, attention
        self.bakery = Bakery(recipe, config, tokenizer, profile)
        weights = recipe.mixture.weights()
        self.modes: list[Mode] = [m for m in MODES if weights[m] > 0]
        self.shares = np.array([weights[m] for m in self.modes]) / sum(weights[m] for m in self.modes)
        self.mandatory = [m for m in self.modes if m in recipe.mixture.mandatory]
        self.shelves: dict[str, Shelf] = trajectory_shelves(data_files(recipe.data), recipe.seed) if recipe.data else {}
        for mode, sources in recipe.conversations.items():
            files = data_files(sources, f"conversations.{mode}")
            self.shelves[mode] = conversation_shelf(mode, files, recipe.seed)
        if missing := [mode for mode in self.modes if self.shelf_name(mode) not in self.shelves]:
            raise ValueError(f"the data has no trajectory for {', '.join(missing)}; set their weight to 0 or add data")
        used = {self.shelf_name(mode) for mode in self.modes}
        self.shelves = {name: shelf for name, shelf in self.shelves.items() if name in used}
        for shelf in self.shelves.values():
            shelf.check(lanes)
        self._lanes: dict[int, Lane] = {}
        self._states: list[Mapping[str, Any]] = []
        self._pool = ThreadPoolExecutor(1, "packs") if ahead else None
        self._coming: dict[tuple[int, int], Future[Pack]] = {}

    def shelf_name(self, mode: Mode) -> str:
        """The shelf a mode's rows come from: conversations of its own, or trajectories of the right kind."""
        return mode if mode in self.recipe.conversations else "two-turn" if mode in IMPROVING else "one-turn"

    def shelf_of(self, mode: Mode) -> Shelf:
        """That shelf."""
        return self.shelves[self.shelf_name(mode)]

    @property
    def seal(self) -> str:
        """Changes with the rows: places in the shelves mean nothing in others."""
        return hashlib.sha256("".join(shelf.seal for shelf in self.shelves.values()).encode()).hexdigest()[:16]

    def resume(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Go on where checkpointed lanes stood. With another number of lanes, what they had left is dealt out anew.
        With no states, begin.
        """
        for future in self._coming.values():
            future.cancel()
        self._coming.clear()
        self._lanes.clear()
        states = [self._known(state) for state in states if state]
        self._states = states if len(states) == self.lanes else self._dealt(states)

    def _known(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """A lane's state without samples of modes that the mixture no longer has."""
        waiting = [entry for entry in state["waiting"] if entry[0] in self.modes]
        return {**state, "waiting": waiting, "reserve": [e for e in state["reserve"] if e[0] in self.mandatory]}

    def _dealt(self, states: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        if not states:
            return []
        known = {name: [s["places"][name] for s in states if name in s["places"]] for name in self.shelves}
        places = {name: dealt_anew(some, self.lanes) for name, some in known.items() if some}
        waiting, reserve = ([entry for state in states for entry in state[kind]] for kind in ("waiting", "reserve"))
        return [
            {
                "places": {name: places[name][lane] for name in places},
                "drawn": max(state["drawn"] for state in states),
                "rejected": sum(state["rejected"] for state in states) if lane == 0 else 0,
                "waiting": waiting[lane :: self.lanes],
                "reserve": reserve[lane :: self.lanes],
            }
            for lane in range(self.lanes)
        ]

    def _made(self, step: int, lane: int) -> Pack:
        if lane not in self._lanes:
            state = self._states[lane] if self._states else None
            self._lanes[lane] = Lane(self, lane, state)
        return self._lanes[lane].pack(step)

    def pack(self, step: int, lane: int = 0) -> Pack:
        """The pack of a step's lane; every lane is asked for its steps in order."""
        if self._pool is None:
            return self._made(step, lane)
        coming = self._coming.pop((step, lane), None) or self._pool.submit(self._made, step, lane)
        pack = coming.result()
        self._coming[step + 1, lane] = self._pool.submit(self._made, step + 1, lane)
        return pack
