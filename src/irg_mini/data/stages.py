"""The mini world as drafter, teacher, painter and judge. A row's seed settles everything random.

The functions need no torch and run in worker processes; a detector (which needs it) sees for them beforehand.
"""

import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from irg.curation.recipe import MiniDrafts, MiniJudge, MiniReflections, MiniTargets, MiniThinking
from irg.curation.records import png
from irg.curation.stages import Outcome, Stage, Workbench, made, rejected
from irg.curation.store import Row
from irg_mini import world
from irg_mini.world.detector import Detector

# A thing in a color not its own is the hardest to draw, so it is drawn most.
TAG_WEIGHTS = {
    "single_object": 1.2,
    "two_object": 0.8,
    "counting": 1.2,
    "colors": 2.5,
    "position": 1.0,
    "color_attr": 2.2,
    "compound": 0.9,
    "stacking": 0.7,
}
UNKNOWN = 0.05
"""Share of requests with a word that the world does not know, where the vocabulary has more than the core's grammar."""
SURE = 0.3  # least score for a thing to count as seen
BY = {"model": "irg_mini.world"}
BUNDLED_DETECTOR = "label-detector"
POOR = 4.0  # quality of a spoiled image; a clean one has 10


def soften(pixels_HW3: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The slight softness of generated images, which is no flaw: faint noise."""
    noise = rng.normal(0, rng.uniform(1, 5), pixels_HW3.shape)
    return np.clip(pixels_HW3 + noise, 0, 255).astype(np.uint8)


def _rng(row: Row, purpose: int) -> np.random.Generator:
    return np.random.default_rng([row["seed"], purpose])


def drawable(vocab: str, sprites: world.Sprites) -> world.Vocabulary:
    """A vocabulary, as far as there are sprites of its nouns.

    Raises:
        ValueError: there is no vocabulary of that name.
    """
    found = world.find_vocabulary(vocab)
    return replace(found, nouns=tuple(name for name in found.nouns if name in sprites.images))


def check_tags(tags: Sequence[str], vocab: str) -> None:
    """Raises ValueError where a vocabulary has no requests of a form."""
    stacking = "on" in world.find_vocabulary(vocab).relations
    possible = [tag for tag in TAG_WEIGHTS if stacking or tag != "stacking"]
    for tag in tags:
        if tag not in possible:
            raise ValueError(f"tags: {vocab} has no requests of the form {tag!r}; choose from {', '.join(possible)}")


def ask(
    rng: np.random.Generator, vocab: world.Vocabulary, weights: Mapping[str, float] | None = None
) -> tuple[world.Request, str]:
    """A random request within a vocabulary and its prompt; never a combination held out for tests, nor one of
    GenEval's prompts."""
    stacking = "on" in vocab.relations
    weights = weights or {tag: w for tag, w in TAG_WEIGHTS.items() if stacking or tag != "stacking"}
    unknown = UNKNOWN if stacking else 0.0
    request = world.sample_request(rng, weights=weights, vocab=vocab, split="train", background=0.2, unknown=unknown)
    styles = None if stacking else {"plain": 0.5, "varied": 0.5}
    return request, world.training_caption(request, rng, styles)[0]


def _request(row: Row) -> world.Request:
    if row.get("request") is None:
        request = world.parse_prompt(row["prompt"])
        if request is None:
            raise ValueError("the mini world does not understand this prompt")
        return request
    return world.Request.from_json(json.loads(row["request"]))


def _intended(row: Row, request: world.Request) -> world.Scene:
    """The right scene that belongs to a row; whoever asks gets the same."""
    return world.sample_scene(request, _rng(row, 1))


def _pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def draft(row: Row, config: MiniDrafts) -> Row:
    """T1 of the right scene and an image of it that is spoiled now and then, or T1 of the spoiled one. ``truth`` tells
    what the image really shows."""
    request, rng = _request(row), _rng(row, 2)
    sprites = world.load_sprites(config.sprites)
    intended = _intended(row, request)
    slipped = config.slips > 0 and rng.random() < config.slips
    if slipped:
        intended = world.near_miss(request, intended, rng)
    drawn, planned = intended, list[world.Flaw]()
    if not slipped and rng.random() < config.flawed:
        drawn, planned = world.corrupt(request, intended, rng, vocab=drawable(config.vocab, sprites))
    pixels = world.render(drawn, config.size, sprites)
    quality = next((flaw.detail for flaw in planned if flaw.kind == "poor_quality"), None)
    if quality is not None:
        pixels = world.degrade(pixels, rng, quality)
    elif rng.random() < config.softened:
        pixels = soften(pixels, rng)
    truth = json.dumps({"layout": world.write_layout(drawn), "quality": quality})
    misplanned = bool(planned) and config.misplanned > 0 and rng.random() < config.misplanned
    thinking = world.think(request, drawn if misplanned else intended)
    return made(row, BY, thinking=thinking, image=png(pixels), truth=truth)


def think(row: Row, config: MiniThinking) -> Row:
    """T1 of a one-turn row: the layout of its scene."""
    request = _request(row)
    return made(row, BY, thought=world.think(request, _intended(row, request)))


def target(row: Row, config: MiniTargets) -> Row:
    """The image of the layout that T2 ends with; of the right scene in a one-turn row."""
    if row["turns"] == 1:
        scene = _intended(row, _request(row))
    else:
        scene = world.parse_layout(world.parse_reflection(row["reflection"]).final_prompt)
    return made(row, BY, improved=png(world.render(scene, config.size, world.load_sprites(config.sprites))))


def _true_sight(row: Row, size: int) -> tuple[list[world.Seen], str | None]:
    """What the draft of a row really shows, and how it is spoiled."""
    if row.get("truth") is None:
        raise ValueError("drafts of a model need a detector to be seen; set detector (such as mini-judge)")
    truth = json.loads(row["truth"])
    return world.see(world.parse_layout(truth["layout"]), size), truth["quality"]


def reflect(row: Row, config: MiniReflections, seen: list[world.Seen] | None = None) -> Row:
    """T2: what is wrong with the draft and the layout of the corrected image."""
    request, quality = _request(row), None
    if seen is None:
        seen, quality = _true_sight(row, config.size)
    try:
        intended = world.parse_layout(row["thinking"])
    except ValueError:  # a model's own thinking need not be a layout
        intended = None
    flaws = world.find_flaws(request, seen, size=config.size, quality=quality, threshold=SURE)
    anew = world.replan(request, intended, _rng(row, 4), config.size) if config.replan and flaws else None
    corrected = anew or world.correct(request, seen, intended, _rng(row, 3), size=config.size, threshold=SURE)
    reflection = world.reflect(request, flaws, corrected, seen, config.size, new_plan=anew is not None)
    return made(row, BY | {"detector": config.detector}, reflection=reflection)


def verdict(request: world.Request, seen: list[world.Seen], quality: str | None, size: int) -> tuple[float, float]:
    """(prompt following, quality), 0 to 10: 10 / (1 + number of flaws), and 10 for a clean image."""
    flaws = world.find_flaws(request, seen, size=size, threshold=SURE)
    return round(10 / (1 + len(flaws)), 3), 10.0 if quality is None else POOR


def preserved(request: world.Request, before: list[world.Seen], after: list[world.Seen], size: int) -> float:
    """Which share of what was right in the draft is still in its place (give or take a cell), times 10."""
    flawed = [flaw.thing for flaw in world.find_flaws(request, before, size=size, threshold=SURE)]
    names = world.classes()
    old = [world.snap(s.name, s.color, s.box, size) for s in before if s.name in names and s.score > SURE]
    new = [world.snap(s.name, s.color, s.box, size) for s in after if s.name in names and s.score > SURE]
    right = [thing for thing in old if thing not in flawed]
    kept = 0
    for thing in right:
        same = [x for x in new if x.name == thing.name and max(abs(x.col - thing.col), abs(x.row - thing.row)) <= 1]
        if same:
            new.remove(same[0])
            kept += 1
    return round(10 * kept / len(right), 3) if right else 10.0


def judge(row: Row, config: MiniJudge, sight: tuple[Any, Any] = (None, None)) -> Row:
    """The standard scores; the order in which images are shown makes no difference here."""
    request, size = _request(row), config.size
    before, after = sight
    poor = None
    if after is None:
        scene = _intended(row, request)
        if row["turns"] == 2:
            before, poor = _true_sight(row, size)
            scene = world.parse_layout(world.parse_reflection(row["reflection"]).final_prompt)
        after = world.see(scene, size)
    scores: dict[str, Any] = {}
    target_following, target_quality = verdict(request, after, None, size)
    if row["turns"] == 2:
        draft_following, draft_quality = verdict(request, before, poor, size)
        gain = round(target_following + target_quality - draft_following - draft_quality, 3)
        scores = {
            "draft_following": draft_following,
            "draft_quality": draft_quality,
            "preservation": preserved(request, before, after, size),
            "gain_1": gain,
            "gain_2": gain,
        }
    scores |= {"target_following": target_following, "target_quality": target_quality}
    prefixed = {f"{config.name}_{name}": value for name, value in scores.items()}
    return made(row, BY | {"detector": config.detector}, **prefixed)


def _all(one: Callable[..., Row], rows: list[Row], config: Any, *sights: list[Any]) -> list[Outcome]:
    """``one`` for every row, timed. A row that the world cannot serve is rejected."""
    outcomes: list[Outcome] = []
    for row, *sight in zip(rows, *sights, strict=True):
        begun = time.perf_counter()
        try:
            outcomes.append(one(row, config, *sight))
            outcomes[-1]["seconds"] = round(time.perf_counter() - begun, 4)  # type: ignore[index]
        except ValueError as error:
            outcomes.append(rejected(row, f"mini world: {error}"))
    return outcomes


# ---- as stages


class WorldStage(Stage):
    """A function of this module over the rows of a block."""

    detector: Any = None

    def __init__(self, config: Any, name: str, columns: dict[str, type], reads: tuple[str, ...] = ()) -> None:
        super().__init__(config)
        self.name, self.columns, self.reads = name, columns, reads
        functions: dict[str, Callable[..., Row]] = {
            "draft": draft,
            "think": think,
            "target": target,
            "reflect": reflect,
        }
        self.one = functions.get(name, judge)
        self.turns = {"draft": (2,), "reflect": (2,), "think": (1,)}.get(name, (1, 2))

    async def open(self, bench: Workbench) -> None:
        self.bench = bench
        folder = getattr(self.config, "detector", None)
        if folder is not None:
            self.detector = bench.kept(f"detector {folder}", lambda: Detector.load(folder))
        world.load_sprites(self.config.sprites)  # say now if they are missing

    async def make(self, rows: list[Row]) -> list[Outcome]:
        if self.detector is None:
            outcomes: list[Outcome] = await self.bench.apart(_all, self.one, rows, self.config)
            return outcomes
        sights = await self.bench.alone(self._look, rows)
        needed = ("id", "prompt", "request", "turns", "seed", "thinking")
        bare = [{name: row.get(name) for name in needed} for row in rows]
        seen: list[Outcome] = await self.bench.apart(_all, self.one, bare, self.config, sights)
        return seen

    def _look(self, rows: list[Row]) -> list[Any]:
        """What the detector sees: in the draft for the reflection, in both images for the judge."""
        before = see_all(self.detector, [row["image"] for row in rows if row["turns"] == 2])
        if self.name == "reflect":
            return before
        after = see_all(self.detector, [row["improved"] for row in rows])
        firsts = iter(before)
        return [(next(firsts) if row["turns"] == 2 else None, one) for row, one in zip(rows, after, strict=True)]


def see_all(detector: Any, images: list[bytes]) -> list[list[world.Seen]]:
    """What a detector sees in images of any size."""
    pixels = [_pixels(image) for image in images]
    if not pixels:
        return []
    if len({p.shape for p in pixels}) == 1:
        seen: list[list[world.Seen]] = detector.detect(np.stack(pixels), threshold=SURE)
        return seen
    return [detector.detect(p[None], threshold=SURE)[0] for p in pixels]
