"""How well a model draws the mini world: held-out or GenEval's prompts, in several ways, judged by a detector.

``irg bench mini --model DIR --referee DIR --out DIR`` draws, judges and prints a table. Every verdict is written, so
that any number can be computed again without drawing again; it resumes where it was stopped. One run that always looks
again holds all shorter ones: with the same seed, a request that may stop is the same up to where it stops
(:mod:`.mini_table`).
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from PIL import Image
from rich.progress import track

from irg import promptsets
from irg.deprecation import old_names, renamed
from irg.reasoning.pipeline import IRGPipeline
from irg.reasoning.settings import Settings, with_options
from irg.results.reflection import is_done
from irg.results.trajectory import Trajectory, Turn
from irg_mini import world
from irg_mini.measure.table import table
from irg_mini.world.detector import Detector

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
SURE = 0.3
REFEREE, JUDGE = "eval-detector", "label-detector"


@dataclass(frozen=True)
class Way:
    """A way of reasoning: settings over the model's own. ``apart``: added to every seed. ``reflections``: whose;
    another prompt's (from the way ``always``), or what the bundled judge and the world's oracle say of the image.
    ``painter``: the model, or the world itself, whose images are right: what the referee misses in them it misses in
    all."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    apart: int = 0
    reflections: Literal["own", "another's", "oracle's"] = "own"
    painter: Literal["model", "world"] = "model"


_ALWAYS = {"mode": "irg", "stop_when_done": False}
WAYS: dict[str, Way] = {
    "direct": Way({"mode": "direct"}),
    "think": Way({"mode": "think"}),
    "irg": Way({"mode": "irg"}),
    "always": Way(_ALWAYS),
    "redraw": Way({"mode": "think"}, apart=500_009),  # an independent second try
    "again": Way(_ALWAYS, apart=500_009),  # the same images as redraw's, and looked at
    "blind": Way(_ALWAYS | {"look": "none"}),
    "vit-only": Way(_ALWAYS | {"look": "vit"}),
    "vae-only": Way(_ALWAYS | {"look": "vae"}),
    "no-text-guidance": Way(_ALWAYS | {"improve_cfg_text_scale": 1.0}),
    "no-image-guidance": Way(_ALWAYS | {"improve_cfg_img_scale": 1.0}),
    "shuffled": Way(_ALWAYS, reflections="another's"),
    "told": Way(_ALWAYS, reflections="oracle's"),  # what a perfect reader would bring
    "rendered": Way(painter="world"),  # the most that this referee lets anyone reach
}


@dataclass(frozen=True)
class Evaluation:
    """What is measured. ``prompts`` is the total over the six forms (0: all of GenEval's)."""

    model: str = "mini"
    referee: str = REFEREE
    """A detector's folder, or one of the bundled eval-detector and label-detector."""
    out: str = "irg-bench/mini"
    prompts: int = 198
    prompt_set: Literal["held-out", "crowded", "geneval"] = "held-out"
    """held-out: combinations that training never sampled, in GenEval's six forms; crowded: such of three to six things,
    and things on and behind others; geneval: the official prompts."""
    geneval: str | None = None
    """Where GenEval's prompts are; default: fetched once, like ``irg bench run`` does."""
    num_images: int = renamed(was="images", default=1)
    """Images a prompt."""
    modes: tuple[str, ...] = ("direct", "think", "irg")
    """Ways of reasoning: direct, think, irg, always, redraw, again (redraw, and looked at), blind, vit-only,
    vae-only, no-text-guidance, no-image-guidance, shuffled (after always), told, rendered (right images by the world
    itself)."""
    rounds: int = 1
    seed: int = 0
    batch_size: int = renamed(was="batch", default=16)
    settings: Annotated[dict[str, Any], tyro.conf.Suppress] = field(default_factory=dict)
    """Settings to change, by name; on the command line the options of ``irg generate``."""

    def __post_init__(self) -> None:
        for mode in self.modes:
            if mode not in WAYS:
                raise ValueError(f"modes: unknown {mode!r}; there are {', '.join(WAYS)}")
        if min(self.num_images, self.batch_size, self.rounds) < 1 or self.prompts < 0:
            raise ValueError("num_images, batch_size and rounds must be at least 1, and prompts not negative")
        if self.prompts == 0 and self.prompt_set != "geneval":
            raise ValueError("prompts: say how many held-out ones; 0 means all of GenEval's")


def held_out_requests(
    count: int, seed: int, vocab: str | Sequence[str] = "core", tags: Sequence[str] = TAGS
) -> list[world.Request]:
    """Requests of the forms in equal shares, from combinations that training never samples."""
    rng = np.random.default_rng([seed, 2509])
    return [world.sample_request(rng, {tags[i % len(tags)]: 1.0}, vocab, split="test") for i in range(count)]


def crowded_requests(count: int, seed: int, names: Sequence[str]) -> list[world.Request]:
    """Requests of three to six things, and of things on or behind others; for all of them there is room."""
    vocab = replace(world.find_vocabulary("geneval"), nouns=tuple(names))
    rng, tags = np.random.default_rng([seed, 2510]), ("compound", "stacking")
    return [world.sample_pair(rng, {tags[i % 2]: 1.0}, vocab, split="test")[0] for i in range(count)]


def geneval_requests(count: int, path: str | None, names: Sequence[str]) -> list[world.Request]:
    """GenEval's prompts as requests, as far as the nouns are known; ``count`` of them, evenly from the six forms.

    Raises:
        ValueError: the prompts are not there, or none is understood.
    """
    found: dict[str, list[world.Request]] = {tag: [] for tag in TAGS}
    for prompt in promptsets.load("geneval", path).prompts:
        request = world.parse_prompt(prompt.text)
        if request is not None and all(entry.name in names for entry in request.include):
            found[prompt.tag].append(request)
    ranked = sorted((rank, tag) for tag, some in found.items() for rank in range(len(some)))
    chosen = ranked[: count or None]
    if not chosen:
        raise ValueError("none of GenEval's prompts is about things that this referee knows")
    return [found[tag][rank] for rank, tag in sorted(chosen, key=lambda item: (TAGS.index(item[1]), item[0]))]


class MiniRun:
    """An evaluation with its model, referee and requests at hand."""

    def __init__(self, evaluation: Evaluation) -> None:
        self.evaluation, self.folder = evaluation, Path(evaluation.out)
        self.referee = Detector.load(evaluation.referee)
        names = self.referee.config.names
        if evaluation.prompt_set == "geneval":
            self.requests = geneval_requests(evaluation.prompts, evaluation.geneval, names)
        elif evaluation.prompt_set == "crowded":
            self.requests = crowded_requests(evaluation.prompts, evaluation.seed, names)
        else:
            self.requests = held_out_requests(evaluation.prompts, evaluation.seed, names)
        self.pipe = IRGPipeline.from_pretrained(evaluation.model)
        self.folder.mkdir(parents=True, exist_ok=True)

    @cached_property
    def judge(self) -> Detector:
        """Who looks for the oracle."""
        return Detector.load(JUDGE)

    def settings(self, way: Way) -> Settings:
        """The model's own, the way's, and what was asked for."""
        return with_options(
            self.pipe.defaults, {"rounds": self.evaluation.rounds, **way.settings, **self.evaluation.settings}
        )

    def run(self, name: str) -> list[dict[str, Any]]:
        """Draw and judge all prompts in one way; a line of ``<out>/<name>.jsonl`` for each image asked for."""
        way, file = WAYS[name], self.folder / f"{name}.jsonl"
        jobs = [(i, n) for i in range(len(self.requests)) for n in range(self.evaluation.num_images)]
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
        starts = range(len(lines), len(jobs), self.evaluation.batch_size)
        with file.open("a", encoding="utf-8") as out:
            for start in track(starts, description=f"{name:>8}", disable=not len(starts)):
                chunk = jobs[start : start + self.evaluation.batch_size]
                begun = time.perf_counter()
                trajectories = self._made(chunk, start, way)
                spent = (time.perf_counter() - begun) / len(chunk)
                for (i, n), trajectory in zip(chunk, trajectories, strict=True):
                    lines.append(self._verdict(i, n, trajectory, spent))
                    out.write(json.dumps(lines[-1]) + "\n")
                out.flush()
        return lines

    def _seed(self, index: int, n: int, way: Way) -> int:
        return 1000 * self.evaluation.seed + 17 * index + n + way.apart

    def _made(self, chunk: Sequence[tuple[int, int]], start: int, way: Way) -> list[Trajectory]:
        if way.painter == "world":
            return [self._rendered(i, n) for i, n in chunk]
        return self._drawn(chunk, way) if way.reflections == "own" else self._redrawn(chunk, start, way)

    def _rendered(self, index: int, n: int) -> Trajectory:
        """A right image of a request, by the world, and its layout as the thought."""
        request, size = self.requests[index], self.settings(WAYS["think"]).width or 128
        rng = np.random.default_rng([self.evaluation.seed, index, n])
        for _ in range(100):
            try:
                scene = world.sample_scene(request, rng)
                break
            except ValueError:  # no room this time
                continue
        else:
            raise ValueError(f"there is no room for {world.caption(request)!r} in one image")
        image = Image.fromarray(world.render(scene, size, world.load_sprites()))
        turn = Turn(thinking=world.think(request, scene), image=image)
        return Trajectory(world.caption(request), "think", self._seed(index, n, Way()), "world", {}, [turn])

    def _drawn(self, chunk: Sequence[tuple[int, int]], way: Way) -> list[Trajectory]:
        outputs = self.pipe(
            [world.caption(self.requests[i]) for i, _ in chunk],
            seed=[self._seed(i, n, way) for i, n in chunk],
            settings=self.settings(way),
            batch_size=self.evaluation.batch_size,
        )
        return [output.trajectory for output in outputs]

    def _redrawn(self, chunk: Sequence[tuple[int, int]], start: int, way: Way) -> list[Trajectory]:
        """First turns as ever, second images from reflections that are not the model's own."""
        first = self._drawn(chunk, Way({"mode": "think"}))
        if way.reflections == "oracle's":
            told = [self._oracle(i, n, one) for (i, n), one in zip(chunk, first, strict=True)]
        else:
            some = self._reflections()
            told = [some[(start + k + len(some) // 2) % len(some)] for k in range(len(chunk))]
        images = self.pipe.redraw(first, told, self.settings(way), self.evaluation.batch_size)
        return [_with_turn(t, text, image) for t, text, image in zip(first, told, images, strict=True)]

    def _oracle(self, index: int, n: int, first: Trajectory) -> str:
        """What is wrong with a first image and how to mend it, as the judge sees it."""
        image, request = np.asarray(first.image), self.requests[index]
        seen, size = self.judge.detect(image[None], threshold=SURE)[0], image.shape[0]
        try:
            intended = world.parse_layout(first.thinking or "")
        except ValueError:  # a thought need not be a layout
            intended = None
        flaws = world.find_flaws(request, seen, size=size, threshold=SURE)
        rng = np.random.default_rng([self.evaluation.seed, index, n])
        corrected = world.correct(request, seen, intended, rng, size=size, threshold=SURE)
        return world.reflect(request, flaws, corrected, seen, size)

    def _reflections(self) -> list[str]:
        file = self.folder / "always.jsonl"
        if not file.is_file():
            raise ValueError("modes: shuffled takes the reflections of always; name it before")
        return [json.loads(line)["thoughts"][1] for line in file.read_text().splitlines()]

    def _verdict(self, index: int, n: int, trajectory: Trajectory, spent: float) -> dict[str, Any]:
        request = self.requests[index]
        images = [np.asarray(turn.image) for turn in trajectory.turns if turn.image is not None]
        found = [self.referee.detect(image[None], threshold=SURE)[0] for image in images]
        thoughts = [turn.thinking for turn in trajectory.turns]
        return {
            "index": index,
            "image": n,
            "tag": request.tag,
            "prompt": trajectory.prompt,
            "seed": trajectory.seed,
            "right": [world.satisfied(request, seen, threshold=SURE) for seen in found],
            "done": [is_done(thought or "") for thought in thoughts[1:]],
            "seen": [
                [(s.name, s.color, [round(v, 1) for v in s.box], round(s.score, 3)) for s in seen] for seen in found
            ],
            "thoughts": thoughts,
            "planned": [_plans_right(request, thought, images[0].shape[1]) for thought in thoughts],
            "stopped": trajectory.stopped,
            "seconds": round(spent, 3),
        }


def _plans_right(request: world.Request, thought: str | None, size: int) -> bool | None:
    """Whether the layout that a thought is, or ends with, would satisfy the request; None where it has none."""
    try:
        layout = thought or ""
        if "Final prompt:" in layout:
            layout = world.parse_reflection(layout).final_prompt
        return world.satisfied(request, world.see(world.parse_layout(layout), size))
    except ValueError:
        return None


def _with_turn(trajectory: Trajectory, text: str, image: Image.Image) -> Trajectory:
    turns = [*trajectory.turns, Turn(thinking=text, image=image)]
    return Trajectory(
        trajectory.prompt, "irg", trajectory.seed, trajectory.model, trajectory.settings, turns, trajectory.stopped
    )


def evaluate(evaluation: Evaluation) -> str:
    """Run everything; returns the table and writes it with the settings to ``<out>``.

    Raises:
        ValueError: the model, the referee, the prompts or a setting is not usable, or ``out`` holds another evaluation.
    """
    folder = Path(evaluation.out)
    _check_same(folder, evaluation)
    run = MiniRun(evaluation)
    (folder / "evaluation.json").write_text(json.dumps(asdict(evaluation), indent=1) + "\n", encoding="utf-8")
    text = table({name: run.run(name) for name in evaluation.modes})
    (folder / "table.md").write_text(text + "\n", encoding="utf-8")
    return text


def _check_same(folder: Path, evaluation: Evaluation) -> None:
    """Lines of different evaluations must not meet in one folder; more ways may be added to it."""
    file = folder / "evaluation.json"
    if not file.is_file():
        return
    before = json.loads(file.read_text(encoding="utf-8"))
    before = {"settings": dict(pair.split("=") for pair in before.pop("options", []))} | before  # of earlier versions
    before = {old_names(Evaluation).get(name, name): value for name, value in before.items()}
    now = json.loads(json.dumps(asdict(evaluation)))
    for name in now.keys() - {"modes", "batch_size", "geneval"}:
        if before.get(name) != now[name]:
            raise ValueError(
                f"{folder} holds an evaluation with {name} {before.get(name)!r}, not {now[name]!r}: choose another out"
            )
