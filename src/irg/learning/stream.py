"""Packs from streamed rows: a lane draws samples by the mixture's weights, keeps a few waiting, fills packs with them.

Rows are read, checked and their pictures decoded once, in a thread beside the training step; the autoencoder reads them
on the device, as part of the step. What a lane must know to go on (places in the shelves, and which samples wait) is a
few numbers, and part of the checkpoint.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from irg.learning.data import fixed_texts, grids_of, patches_of
from irg.learning.filling import fullest
from irg.learning.modes import IMPROVING, MODES, EncodedPicture, EncodedTrajectory, Mode, write
from irg.learning.packing import EMPTY, Attention, Pack, Unread, assemble, filler
from irg.learning.recipe import TrainRecipe
from irg.learning.rows import BadRow, Rejections, checked, conversation, data_files, pixels_of
from irg.learning.shelves import Cursor, Found, Shelf, conversation_shelf, dealt_anew, trajectory_shelves
from irg.model.attention import PackedAttention
from irg.model.config import ModelConfig
from irg.model.profile import Profile
from irg.model.tokenizer import TextTokenizer
from irg.sequence.images import to_tensor
from irg.sequence.layout import Layout, lay_out
from irg.sequence.parts import Latents, Part, Patches, Target, Text, drop_conditions, noised_copies


@dataclass(frozen=True, eq=False)
class Pixels:
    """A decoded picture, uint8 [H, W, 3], at the size the autoencoder reads."""

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
    """A sample that waits for its pack."""

    address: Address
    parts: list[Part]
    layout: Layout


class Bakery:
    """Makes samples from rows: texts to ids, pictures to pixels, a mode's parts, dropout."""

    def __init__(self, recipe: TrainRecipe, config: ModelConfig, tokenizer: TextTokenizer, profile: Profile) -> None:
        self.recipe, self.config, self.tokenizer = recipe, config, tokenizer
        self.fixed = fixed_texts(tokenizer, profile)
        self.limit = min(recipe.max_tokens_per_sample, recipe.tokens_per_pack)

    def sample(self, mode: Mode, found: Found, lane: int, draw: int) -> Sample:
        """A row as a sample of a mode.

        Raises:
            BadRow: a part is missing or broken, or the sample is too long.
        """
        whole = self._conversation(found) if "conversation" in found.values else self._trajectory(mode, found)
        rng, d = np.random.default_rng([self.recipe.seed, 3, lane, draw]), self.recipe.dropout
        parts = drop_conditions(whole, rng.random, text=d.text, latents=d.vae, patches=d.vit)
        parts = noised_copies(parts, self.recipe.noise_copies)
        try:
            layout = lay_out(parts, self.config.grammar)
        except ValueError as error:
            raise BadRow(found.where, str(error)) from None
        if len(layout) > self.limit:
            which = "max_tokens_per_sample" if self.limit < self.recipe.tokens_per_pack else "tokens_per_pack"
            raise BadRow(found.where, f"{len(layout)} tokens in mode {mode}, more than {which} {self.limit}")
        return Sample(Address(mode, found.unit, found.row, lane, draw), parts, layout)

    def _picture(self, image: bytes, where: str) -> EncodedPicture:
        pixels = Pixels(pixels_of(image, where, self.config.vae_resize))
        return EncodedPicture(pixels, *grids_of(pixels.values.shape[0], pixels.values.shape[1], self.config))

    def _trajectory(self, mode: Mode, found: Found) -> list[Part]:
        row = checked(found.values, found.where)
        encode = self.tokenizer.encode
        trajectory = EncodedTrajectory(
            prompt=encode(row.prompt),
            thinking=encode(row.thinking),
            image=self._picture(row.image, row.where),
            reflection=None if row.reflection is None else encode(row.reflection),
            improved=None if row.improved is None else self._picture(row.improved, row.where),
            **self.fixed,
        )
        return write(mode, trajectory)

    def _conversation(self, found: Found) -> list[Part]:
        parts: list[Part] = []
        for piece in conversation(found.values["conversation"], found.where):
            if piece.text is not None:
                parts.append(Text(self.tokenizer.encode(piece.text), piece.loss))
            else:
                assert piece.image is not None
                picture = self._picture(piece.image, found.where)
                parts += [picture.drawn()] * piece.loss
                parts += picture.read(vit=piece.vit, vae=piece.vae)
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
        self.waiting = [self._again(Address(*entry)) for entry in state["waiting"]] if state else []

    def _again(self, address: Address) -> Sample:
        found = self.packs.shelf_of(address.mode).find(address.unit, address.row)
        return self.packs.bakery.sample(address.mode, found, address.lane, address.draw)

    def draw(self, mode: Mode | None = None) -> Sample:
        """A new sample, of a given mode or one chosen by the mixture's weights. Broken rows are logged and passed over.

        Raises:
            ValueError: no row in a whole round was fit to be used.
        """
        packs, draw = self.packs, self.drawn
        self.drawn += 1
        if mode is None:
            rng = np.random.default_rng([packs.recipe.seed, 4, self.lane, draw])
            mode = packs.modes[int(rng.choice(len(packs.modes), p=packs.shares))]
        cursor = self.cursors[packs.shelf_name(mode)]
        for _ in range(cursor.shelf.rows):
            try:
                return packs.bakery.sample(mode, cursor.next(), self.lane, draw)
            except BadRow as bad:
                self.rejected += 1
                packs.rejections.add(bad)
                last = bad
        raise ValueError(
            f"no row for {mode} is fit to be used; all are listed in {packs.rejections.path}; the last: {last}"
        )

    def pack(self, step: int) -> Pack:
        """The next pack: a sample of every mandatory mode, the one that has waited longest, and what fills it best."""
        budget, chosen = self.packs.recipe.tokens_per_pack, list[Sample]()
        for mode in self.packs.mandatory:
            waiting = next((s for s in self.waiting if s.address.mode == mode), None)
            chosen.append(waiting or self.draw(mode))
            self.waiting = [s for s in self.waiting if s is not waiting]
        room = budget - sum(len(s.layout) for s in chosen)
        if room < 0:
            raise ValueError(
                f"samples of the mandatory modes take {budget - room} tokens: raise tokens_per_pack ({budget})"
            )
        while True:
            while len(self.waiting) < self.packs.recipe.lookahead:
                self.waiting.append(self.draw())
            picked = self._pick(room, first=len(chosen) == len(self.packs.mandatory))
            if not picked:
                break
            everything = len(picked) == len(self.waiting)
            chosen += picked
            taken = {id(s) for s in picked}
            self.waiting = [s for s in self.waiting if id(s) not in taken]
            room = budget - sum(len(s.layout) for s in chosen)
            if not everything:
                break
        return self._assembled(chosen, step)

    def _pick(self, room: int, first: bool) -> list[Sample]:
        """Which of the waiting samples go in; the oldest one does, so that none waits for ever."""
        lengths = [len(s.layout) for s in self.waiting]
        if first and lengths[0] <= room:
            rest = fullest(lengths[1:], room - lengths[0])
            return [self.waiting[0], *(self.waiting[1 + i] for i in rest)]
        return [self.waiting[i] for i in fullest(lengths, room)]

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
            "waiting": [list(vars(s.address).values()) for s in self.waiting],
        }


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
            complete: see :func:`irg.learning.packing.filler`.
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

    def resume(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Go on where checkpointed lanes stood. With another number of lanes, what they had left is dealt out anew."""
        for future in self._coming.values():
            future.cancel()
        self._coming.clear()
        self._lanes.clear()
        self._states = list(states) if len(states) == self.lanes else self._dealt(states)

    def _dealt(self, states: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        places = {name: dealt_anew([s["places"][name] for s in states], self.lanes) for name in self.shelves}
        waiting = [entry for state in states for entry in state["waiting"]]
        return [
            {
                "places": {name: places[name][lane] for name in places},
                "drawn": max(state["drawn"] for state in states),
                "rejected": sum(state["rejected"] for state in states) if lane == 0 else 0,
                "waiting": waiting[lane :: self.lanes],
            }
            for lane in range(self.lanes)
        ]

    def _made(self, step: int, lane: int) -> Pack:
        if lane not in self._lanes:
            state = self._states[lane] if self._states else None
            self._lanes[lane] = Lane(self, lane, state or None)
        return self._lanes[lane].pack(step)

    def pack(self, step: int, lane: int = 0) -> Pack:
        """The pack of a step's lane; every lane is asked for its steps in order."""
        if self._pool is None:
            return self._made(step, lane)
        coming = self._coming.pop((step, lane), None) or self._pool.submit(self._made, step, lane)
        pack = coming.result()
        self._coming[step + 1, lane] = self._pool.submit(self._made, step + 1, lane)
        return pack
