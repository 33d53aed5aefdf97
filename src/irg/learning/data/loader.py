"""The packs of all data streams that a process runs; the next step's are made while a step is taken.

Whether rows are read when they are needed or held in memory is only a matter of the row source: the packs are the same.
"""

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from irg.learning.data.in_memory import hold_in_memory
from irg.learning.data.packing import Attention, Pack
from irg.learning.data.row_source import RowSource, conversation_source, reshard, trajectory_sources
from irg.learning.data.rows import BadRow, Rejections, data_files
from irg.learning.data.samples import SampleBuilder, TrajectoryEncoder
from irg.learning.data.stream import DataStream, Feed, source_name
from irg.learning.modes import MODES, EncodedTrajectory
from irg.learning.parallel import Ranks
from irg.learning.recipe import TrainRecipe
from irg.model.network.autoencoder import Autoencoder
from irg.model.network.flex_attention import MIN_HEAD_DIM, FlexAttention
from irg.model.network.packed_attention import PackedAttention
from irg.model.network.shared_prefix_attention import SharedPrefixAttention


def attention_of(recipe: TrainRecipe, device: torch.device, head_dim: int) -> Attention:
    """The attention that packs are planned for.

    Raises:
        ValueError: the recipe wants flex for heads that are too small for it.
    """
    kind, fits = recipe.parallel.attention, head_dim >= MIN_HEAD_DIM
    if kind == "auto":
        kind = "flex" if device.type == "cuda" and fits else "shared"
    if kind == "flex" and not fits:
        raise ValueError(
            f"parallel.attention flex needs heads of {MIN_HEAD_DIM} values or more, this model's have {head_dim}: set "
            "it to auto, shared or dense"
        )
    return {"flex": FlexAttention, "shared": SharedPrefixAttention, "dense": PackedAttention}[kind]


def build_loader(
    recipe: TrainRecipe, encoder: TrajectoryEncoder, autoencoder: Autoencoder, ranks: Ranks, quiet: bool
) -> "PackLoader":
    """The loader of a training process.

    Raises:
        ValueError: the data is not there, is of another kind, or cannot serve the mixture.
    """
    sources = row_sources(recipe, None if recipe.stream else (encoder, autoencoder, quiet))
    feed = Feed(
        recipe,
        sources,
        SampleBuilder(recipe, encoder.config, encoder),
        Rejections(Path(recipe.out) / f"rejected-{ranks.rank}.jsonl"),
        ranks.world * recipe.parallel.accumulate,
        attention_of(recipe, ranks.device, encoder.config.decoder.head_dim),
        complete=ranks.mesh is not None,
    )
    return PackLoader(feed, pinned=ranks.device.type == "cuda")


def row_sources(
    recipe: TrainRecipe, memory: tuple[TrajectoryEncoder, Autoencoder, bool] | None = None
) -> dict[str, RowSource]:
    """The row sources that a recipe's mixture draws from, by name; ``validation`` too where rows are held out.

    Args:
        memory: hold trajectories in memory, encoded by these; the flag says whether quietly.

    Raises:
        ValueError: a source is missing or of another kind, or a mode has no rows.
    """
    held_out = recipe.validation_rows if recipe.validate_every else 0
    sources: dict[str, RowSource] = {}
    if recipe.data:
        files, held = data_files(recipe.data), None
        if memory is not None:
            encoder, autoencoder, quiet = memory
            cache = Path(recipe.cache) if recipe.cache else Path(recipe.out) / "cache"
            held = hold_in_memory(files, encoder, autoencoder, cache, quiet)
        sources |= trajectory_sources(files, recipe.seed, held_out, held)
    for mode, names in recipe.conversations.items():
        sources[mode] = conversation_source(mode, data_files(names, f"conversations.{mode}"), recipe.seed)
    weights = recipe.mixture.weights()
    used = {mode: source_name(recipe, mode) for mode in MODES if weights[mode]}
    if missing := [mode for mode, name in used.items() if name not in sources]:
        raise ValueError(f"the data has no trajectory for {', '.join(missing)}; set their weight to 0 or add data")
    return {name: source for name, source in sources.items() if name in {*used.values(), "validation"}}


class PackLoader:
    """Makes packs, one step ahead in a thread."""

    def __init__(self, feed: Feed, ahead: bool = True, pinned: bool = False) -> None:
        """Args:
            ahead: make the next step's packs in a thread.
            pinned: put them into pinned memory.

        Raises:
            ValueError: there are too few rows for the data streams.
        """
        self.sources = dict(feed.sources)
        self.validation = self.sources.pop("validation", None)
        for source in self.sources.values():
            source.check(feed.streams)
        self.feed = Feed(**vars(feed) | {"sources": self.sources})
        self.pinned = pinned
        self._streams: dict[int, DataStream] = {}
        self._states: list[Mapping[str, Any]] = []
        self._pool = ThreadPoolExecutor(1, "packs") if ahead else None
        self._coming: dict[tuple[int, int], Future[Pack]] = {}

    @property
    def fingerprint(self) -> str:
        """Changes with the rows: positions in the sources mean nothing in others."""
        whole = "".join(source.fingerprint for source in self.sources.values())
        content = "".join(source.content_fingerprint for source in self.sources.values())
        return "-".join(hashlib.sha256(facts.encode()).hexdigest()[:16] for facts in (whole, content))

    def held_out(self) -> list[EncodedTrajectory]:
        """The trajectories kept out of training, encoded; broken ones are refused."""
        found = []
        for row in self.validation.in_file_order() if self.validation else ():
            try:
                found.append(self.feed.builder.encoder.trajectory(row))
            except BadRow as bad:
                self.feed.rejections.add(bad)
        return found

    def pack(self, step: int, stream: int = 0) -> Pack:
        """The pack of a step and data stream; a stream takes its steps in order."""
        if self._pool is None:
            return self._made(step, stream)
        coming = self._coming.pop((step, stream), None) or self._pool.submit(self._made, step, stream)
        pack = coming.result()
        self._coming[step + 1, stream] = self._pool.submit(self._made, step + 1, stream)
        return pack

    def _made(self, step: int, stream: int) -> Pack:
        if stream not in self._streams:
            self._streams[stream] = DataStream(self.feed, stream, self._states[stream] if self._states else None)
        pack = self._streams[stream].pack(step)
        return pack.pinned() if self.pinned else pack

    def resume(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Go on where checkpointed data streams stood. Another number of streams shares what they had left. With no
        states, begin."""
        for future in self._coming.values():
            future.cancel()
        self._coming.clear()
        self._streams.clear()
        states = [self._known(state) for state in states if state]
        self._states = states if len(states) == self.feed.streams else self._resharded(states)

    def _known(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """A stream's state without samples of modes that the mixture no longer has."""
        waiting = [entry for entry in state["waiting"] if entry[0] in self.feed.modes]
        return {**state, "waiting": waiting, "reserve": [e for e in state["reserve"] if e[0] in self.feed.mandatory]}

    def _resharded(self, states: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        if not states:
            return []
        streams = self.feed.streams
        known = {name: [s["positions"][name] for s in states if name in s["positions"]] for name in self.sources}
        positions = {name: reshard(some, streams) for name, some in known.items() if some}
        waiting, reserve = ([entry for state in states for entry in state[kind]] for kind in ("waiting", "reserve"))
        return [
            {
                "positions": {name: positions[name][stream] for name in positions},
                "drawn": max(state["drawn"] for state in states),
                "rejected": sum(state["rejected"] for state in states) if stream == 0 else 0,
                "waiting": waiting[stream::streams],
                "reserve": reserve[stream::streams],
            }
            for stream in range(streams)
        ]
