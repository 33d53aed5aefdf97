"""The mini world makes drafts, reflections, targets and thinking of data recipes: kind ``miniworld``.

A row's seed decides everything random. The work on a row needs no torch and runs in worker processes; where a detector
looks at images, it does so beforehand.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from irg.curation.content import check_share
from irg.curation.parts import Drafts, Parts, Reflections, Targets, Thinking
from irg.curation.records import png
from irg.curation.resources import Resources
from irg.curation.stages import Outcome, Stage, accepted, rejected
from irg.curation.store import Row
from irg.deprecation import renamed
from irg.image_files import open_image
from irg_mini import world
from irg_mini.data.requests import drawable
from irg_mini.world.rules import SCORE_THRESHOLD

BY = {"model": "irg_mini.world"}
Sprites = Literal["fluent", "builtin"]


def check_strategy(parts: Parts) -> None:
    """Raises ValueError where the draft is not what targets are made from."""
    if parts.strategy == "independent":
        raise ValueError("the mini world corrects drafts; it needs strategy: refine")


def soften(pixels_HW3: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Faint noise, like that of generated images; it is no flaw."""
    noise = rng.normal(0, rng.uniform(1, 5), pixels_HW3.shape)
    return np.clip(pixels_HW3 + noise, 0, 255).astype(np.uint8)


def _rng(row: Row, purpose: int) -> np.random.Generator:
    return np.random.default_rng([row["seed"], purpose])


def request_of(row: Row) -> world.Request:
    if row.get("request") is None:
        request = world.parse_prompt(row["prompt"])
        if request is None:
            raise ValueError("the mini world does not understand this prompt")
        return request
    return world.Request.from_json(json.loads(row["request"]))


def intended_scene(row: Row, request: world.Request) -> world.Scene:
    """The right scene that belongs to a row; the same for every stage."""
    return world.sample_scene(request, _rng(row, 1))


def _pixels(data: bytes) -> np.ndarray:
    return np.asarray(open_image(data))


def ground_truth(row: Row, size: int) -> tuple[list[world.Seen], str | None]:
    """What a rendered draft shows, by the ground truth, and how it is degraded."""
    if row.get("truth") is None:
        raise ValueError("drafts of a model need a detector to be seen; set detector (such as label-detector)")
    truth = json.loads(row["truth"])
    return world.see(world.parse_layout(truth["layout"]), size), truth["quality"]


class WorldStage(Stage):
    """``config.make`` over the rows of a block, in worker processes."""

    detector: Any = None

    def __init__(self, config: Any, **columns: type) -> None:
        super().__init__(config)
        self.columns = columns

    async def open(self, resources: Resources) -> None:
        self.resources = resources
        folder = getattr(self.config, "detector", None)
        if folder is not None:
            self.detector = load_detector(resources, folder)
        world.load_sprites(self.config.sprites)  # missing ones are an error now, not in a worker

    async def make(self, rows: list[Row]) -> list[Outcome]:
        if self.detector is None:
            outcomes: list[Outcome] = await self.resources.run_in_process(_make_all, self.config.make, rows)
            return outcomes
        seen = await self.resources.run_in_model_thread(self.look, rows)
        needed = ("id", "prompt", "request", "turns", "seed", "thinking")
        bare = [{name: row.get(name) for name in needed} for row in rows]  # images need not travel to the workers
        with_detector: list[Outcome] = await self.resources.run_in_process(_make_all, self.config.make, bare, seen)
        return with_detector

    def look(self, rows: list[Row]) -> list[Any]:
        """What the detector sees in each row's draft; the second argument of ``config.make``."""
        return see_all(self.detector, [row["image"] for row in rows])


def load_detector(resources: Resources, folder: str) -> Any:
    """A detector, loaded once for all stages.

    Raises:
        ValueError: there is none in ``folder``.
    """
    from irg_mini.world.detector import Detector  # needs torch, which most builds do without

    return resources.get_or_load(f"detector {folder}", lambda: Detector.load(folder))


def _make_all(make: Callable[..., Row], rows: list[Row], *seen: list[Any]) -> list[Outcome]:
    """``make`` for every row, timed. A row that the world can't serve is rejected."""
    outcomes: list[Outcome] = []
    for row, *detections in zip(rows, *seen, strict=True):
        begun = time.perf_counter()
        try:
            outcome = make(row, *detections)
            outcomes.append(outcome | {"seconds": round(time.perf_counter() - begun, 4)})
        except ValueError as error:
            outcomes.append(rejected(row, f"mini world: {error}"))
    return outcomes


def see_all(detector: Any, images: list[bytes]) -> list[list[world.Seen]]:
    """What a detector sees in images of any size."""
    pixels = [_pixels(image) for image in images]
    if not pixels:
        return []
    if len({p.shape for p in pixels}) == 1:
        seen: list[list[world.Seen]] = detector.detect(np.stack(pixels), threshold=SCORE_THRESHOLD)
        return seen
    return [detector.detect(p[None], threshold=SCORE_THRESHOLD)[0] for p in pixels]


@dataclass(frozen=True)
class MiniDrafts(Drafts):
    """Drafts of the mini world: the right scene, flawed in ``flawed`` of all rows; of these, ``misplanned`` were
    already planned wrong: T1 says what was drawn, not what was asked for. ``near_misses`` of all rows are instead drawn
    just as T1 plans, which narrowly misses a relation that was asked for."""

    kind: Literal["miniworld"]
    flawed: float = 0.8
    misplanned: float = 0.0
    near_misses: float = renamed(was="slips", default=0.0)
    softened: float = 0.3
    size: int = 128
    sprites: Sprites = "fluent"
    vocab: Literal["core", "geneval", "full"] = "geneval"

    def __post_init__(self) -> None:
        for name in ("flawed", "misplanned", "near_misses", "softened"):
            check_share(name, getattr(self, name))

    def stage(self, parts: Parts) -> Stage:
        return WorldStage(self, thinking=str, image=bytes, truth=str)

    def make(self, row: Row) -> Row:
        """T1 of the right scene and an image of it that is flawed now and then, or T1 of the flawed one. ``truth``
        says what the image really shows."""
        request, rng = request_of(row), _rng(row, 2)
        sprites = world.load_sprites(self.sprites)
        intended = intended_scene(row, request)
        missed = self.near_misses > 0 and rng.random() < self.near_misses
        if missed:
            intended = world.near_miss(request, intended, rng)
        drawn, planned = intended, list[world.Flaw]()
        if not missed and rng.random() < self.flawed:
            drawn, planned = world.corrupt(request, intended, rng, vocab=drawable(self.vocab, sprites))
        pixels = world.render(drawn, self.size, sprites)
        quality = next((flaw.detail for flaw in planned if flaw.kind == "poor_quality"), None)
        if quality is not None:
            pixels = world.degrade(pixels, rng, quality)
        elif rng.random() < self.softened:
            pixels = soften(pixels, rng)
        truth = json.dumps({"layout": world.write_layout(drawn), "quality": quality})
        misplanned = bool(planned) and self.misplanned > 0 and rng.random() < self.misplanned
        thinking = world.think(request, drawn if misplanned else intended)
        return accepted(row, BY, thinking=thinking, image=png(pixels), truth=truth)


@dataclass(frozen=True)
class MiniReflections(Reflections):
    """T2 by rule, from what a ``detector`` sees (a folder; ``label-detector`` is bundled) or from the truth (null).
    With ``replan`` a T1 that is itself wrong is answered by a new plan; without, what was right in it stays."""

    kind: Literal["miniworld"]
    detector: str | None = None
    replan: bool = False
    size: int = 128
    sprites: Sprites = "fluent"

    def check(self, parts: Parts) -> None:
        check_strategy(parts)
        if self.detector is None and not isinstance(parts.draft, MiniDrafts):
            raise ValueError("reflect: drafts of a model must be seen; set reflect.detector (such as label-detector)")

    def stage(self, parts: Parts) -> Stage:
        return WorldStage(self, reflection=str)

    def make(self, row: Row, seen: list[world.Seen] | None = None) -> Row:
        """T2: what is wrong with the draft and the layout of the corrected image."""
        request, quality = request_of(row), None
        if seen is None:
            seen, quality = ground_truth(row, self.size)
        try:
            intended = world.parse_layout(row["thinking"])
        except ValueError:  # a model's own thinking need not be a layout
            intended = None
        flaws = world.find_flaws(request, seen, size=self.size, quality=quality, threshold=SCORE_THRESHOLD)
        new_plan = world.replan(request, intended, _rng(row, 4), self.size) if self.replan and flaws else None
        corrected = new_plan or world.correct(
            request, seen, intended, _rng(row, 3), size=self.size, threshold=SCORE_THRESHOLD
        )
        reflection = world.reflect(request, flaws, corrected, seen, self.size, new_plan=new_plan is not None)
        return accepted(row, BY | {"detector": self.detector}, reflection=reflection)


@dataclass(frozen=True)
class MiniTargets(Targets):
    """Targets rendered from the layout that T2 ends with (or, for one-turn rows, from a right scene)."""

    kind: Literal["miniworld"]
    size: int = 128
    sprites: Sprites = "fluent"

    def check(self, parts: Parts) -> None:
        check_strategy(parts)
        if parts.reflect is not None and not isinstance(parts.reflect, MiniReflections):
            raise ValueError("target.kind miniworld renders its reflections' layouts; it needs reflect.kind miniworld")

    def stage(self, parts: Parts) -> Stage:
        return WorldStage(self, improved=bytes)

    def make(self, row: Row) -> Row:
        """The image of the layout that T2 ends with; of the right scene in a one-turn row."""
        if row["turns"] == 1:
            scene = intended_scene(row, request_of(row))
        else:
            scene = world.parse_layout(world.parse_reflection(row["reflection"]).final_prompt)
        return accepted(row, BY, improved=png(world.render(scene, self.size, world.load_sprites(self.sprites))))


@dataclass(frozen=True)
class MiniThinking(Thinking):
    """T1 of one-turn rows: the layout of their scene."""

    kind: Literal["miniworld"]
    sprites: Sprites = "fluent"

    def stage(self, parts: Parts) -> Stage:
        return WorldStage(self, thought=str)

    def make(self, row: Row) -> Row:
        """T1 of a one-turn row: the layout of its scene."""
        request = request_of(row)
        return accepted(row, BY, thought=world.think(request, intended_scene(row, request)))
