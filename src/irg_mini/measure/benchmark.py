"""How well a model draws the mini world: held-out or GenEval's prompts, in several ways, judged by a detector.

``irg bench mini --model DIR --detector DIR --out DIR`` draws, judges and prints a table. Every verdict is written, so
that any number can be computed again without drawing again; it resumes where it was stopped. One run that always looks
again holds all shorter ones: with the same seed, a request that may stop is the same up to where it stops
(:mod:`.table`).
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from PIL import Image
from rich.progress import track

from irg.deprecation import old_names, renamed, warn
from irg.files import JsonLines, locked, read_json_lines, write_json, write_text
from irg.reasoning.pipeline import IRGPipeline
from irg.reasoning.settings import Settings
from irg.results.reflection import is_done
from irg.results.trajectory import Trajectory, Turn
from irg_mini import world
from irg_mini.measure.critic import true_reflection
from irg_mini.measure.prompts import crowded_requests, geneval_requests, held_out_requests, verifiable_requests
from irg_mini.measure.table import table
from irg_mini.world.detector import EVAL_DETECTOR, LABEL_DETECTOR, RENAMED, Detector
from irg_mini.world.rules import SCORE_THRESHOLD


@dataclass(frozen=True)
class Variant:
    """A way of reasoning.

    Attributes:
        settings: over the model's own.
        seed_offset: added to every seed.
        reflections: whose the second images follow: the model's own, another prompt's (from the variant ``always``), or
            the ground truth of the image (by the label detector).
        generator: the model, or the world itself, whose images are right: what the detector misses in them it misses
            in all.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    seed_offset: int = 0
    reflections: Literal["own", "shuffled", "ground truth"] = "own"
    generator: Literal["model", "world"] = "model"


_OWN = {"mode": "irg", "critic": "self"}
_ALWAYS = _OWN | {"stop_when_done": False}
VARIANTS: dict[str, Variant] = {
    "direct": Variant({"mode": "direct"}),
    "think": Variant({"mode": "think"}),
    "irg": Variant({"mode": "irg"}),
    "own": Variant(_OWN),
    "always": Variant(_ALWAYS),
    "redraw": Variant({"mode": "think"}, seed_offset=500_009),  # an independent second image
    "again": Variant(_ALWAYS, seed_offset=500_009),  # the same images as redraw's, and looked at
    "blind": Variant(_ALWAYS | {"look": "none"}),
    "vit-only": Variant(_ALWAYS | {"look": "vit"}),
    "vae-only": Variant(_ALWAYS | {"look": "vae"}),
    "no-text-guidance": Variant(_ALWAYS | {"improve_cfg_text_scale": 1.0}),
    "no-image-guidance": Variant(_ALWAYS | {"improve_cfg_img_scale": 1.0}),
    "shuffled": Variant(_ALWAYS, reflections="shuffled"),
    "ground-truth": Variant(_ALWAYS, reflections="ground truth"),  # what perfect understanding would bring
    "best-of-4": Variant({"mode": "think", "candidates": 4, "select": "mini"}),
    "keep-best": Variant({"mode": "irg", "keep_best": True, "select": "mini"}),
    "rendered": Variant(generator="world"),  # the most that this detector lets anyone reach
}
_RENAMED_VARIANTS = {"told": "ground-truth"}


@dataclass(frozen=True)
class Evaluation:
    """What is measured. ``prompts`` is the total over the six forms (0: all of GenEval's)."""

    model: str = "mini"
    detector: str = renamed(was="referee", default=EVAL_DETECTOR)
    """A detector's folder, or one of the bundled eval-detector and label-detector."""
    out: str = "irg-bench/mini"
    prompts: int = 198
    prompt_set: Literal["held-out", "crowded", "verifiable", "geneval"] = "held-out"
    """held-out: combinations that training never sampled, in GenEval's six forms; crowded: such of three to six things,
    and things on and behind others; verifiable: those of the crowded ones whose true scenes the detector accepts (it
    misses half-hidden things); geneval: the official prompts."""
    geneval: str | None = None
    """Where GenEval's prompts are; default: fetched once, like ``irg bench run`` does."""
    num_images: int = renamed(was="images", default=1)
    """Images a prompt."""
    modes: tuple[str, ...] = ("direct", "think", "irg")
    """Ways of reasoning: direct, think, irg, own (irg by the model's own reflections, as are the next ones), always
    (without a stop), redraw, again (redraw, and looked at), blind, vit-only, vae-only, no-text-guidance,
    no-image-guidance, shuffled (another prompt's reflections; after always), ground-truth (true reflections), best-of-4
    (images, of which the ground truth picks one), keep-best (of the loop's images, by the ground truth), rendered
    (right images by the world itself)."""
    rounds: int = 1
    seed: int = 0
    batch_size: int = renamed(was="batch", default=16)
    settings: Annotated[dict[str, Any], tyro.conf.Suppress] = field(default_factory=dict)
    """Settings to change, by name; on the command line the options of ``irg generate``."""

    def __post_init__(self) -> None:
        for old in set(self.modes) & _RENAMED_VARIANTS.keys():
            warn(f"mode {old}", _RENAMED_VARIANTS[old])
        object.__setattr__(self, "modes", tuple(_RENAMED_VARIANTS.get(mode, mode) for mode in self.modes))
        for mode in self.modes:
            if mode not in VARIANTS:
                raise ValueError(f"modes: unknown {mode!r}; there are {', '.join(VARIANTS)}")
        if min(self.num_images, self.batch_size, self.rounds) < 1 or self.prompts < 0:
            raise ValueError("num_images, batch_size and rounds must be at least 1, and prompts not negative")
        if self.prompts == 0 and self.prompt_set != "geneval":
            raise ValueError("prompts: say how many held-out ones; 0 means all of GenEval's")


class _Run:
    """An evaluation with its model, detector and requests loaded."""

    def __init__(self, evaluation: Evaluation) -> None:
        self.evaluation, self.folder = evaluation, Path(evaluation.out)
        self.detector = Detector.load(evaluation.detector)
        names = self.detector.config.names
        if evaluation.prompt_set == "geneval":
            self.requests = geneval_requests(evaluation.prompts, evaluation.geneval, names)
        elif evaluation.prompt_set == "crowded":
            self.requests = crowded_requests(evaluation.prompts, evaluation.seed, names)
        elif evaluation.prompt_set == "verifiable":
            sprites = world.load_sprites()
            self.requests = verifiable_requests(evaluation.prompts, evaluation.seed, self.detector, sprites)
        else:
            self.requests = held_out_requests(evaluation.prompts, evaluation.seed, names)
        self.pipe = IRGPipeline.from_pretrained(evaluation.model)

    @cached_property
    def label_detector(self) -> Detector:
        """What ground-truth reflections are written from; not the detector that scores."""
        return Detector.load(LABEL_DETECTOR)

    def settings(self, variant: Variant) -> Settings:
        """The model's own, the variant's, and what was asked for."""
        changes = {"rounds": self.evaluation.rounds, **variant.settings, **self.evaluation.settings}
        return self.pipe.with_options(self.pipe.defaults, changes)

    def results(self, name: str) -> list[dict[str, Any]]:
        """Draw and judge all prompts in one way; a line of ``<out>/<name>.jsonl`` for each image asked for."""
        variant, path = VARIANTS[name], self.folder / f"{name}.jsonl"
        jobs = [(i, n) for i in range(len(self.requests)) for n in range(self.evaluation.num_images)]
        with JsonLines(path) as file:
            lines = read_json_lines(path)
            starts = range(len(lines), len(jobs), self.evaluation.batch_size)
            for start in track(starts, description=f"{name:>8}", disable=not len(starts)):
                chunk = jobs[start : start + self.evaluation.batch_size]
                begun = time.perf_counter()
                trajectories = self._trajectories(chunk, start, variant)
                seconds = (time.perf_counter() - begun) / len(chunk)
                for (i, n), trajectory in zip(chunk, trajectories, strict=True):
                    lines.append(self._verdict(i, n, trajectory, seconds))
                    file.append(lines[-1])
        return lines

    def _seed(self, index: int, n: int, variant: Variant) -> int:
        return 1000 * self.evaluation.seed + 17 * index + n + variant.seed_offset

    def _trajectories(self, chunk: Sequence[tuple[int, int]], start: int, variant: Variant) -> list[Trajectory]:
        if variant.generator == "world":
            return [self._rendered(i, n) for i, n in chunk]
        if variant.reflections == "own":
            return self._drawn(chunk, variant)
        return self._redrawn(chunk, start, variant)

    def _rendered(self, index: int, n: int) -> Trajectory:
        """A right image of a request, by the world, and its layout as the thinking."""
        request, size = self.requests[index], self.settings(VARIANTS["think"]).width or 128
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
        return Trajectory(world.caption(request), "think", self._seed(index, n, Variant()), "world", {}, [turn])

    def _drawn(self, chunk: Sequence[tuple[int, int]], variant: Variant) -> list[Trajectory]:
        outputs = self.pipe(
            [world.caption(self.requests[i]) for i, _ in chunk],
            seed=[self._seed(i, n, variant) for i, n in chunk],
            settings=self.settings(variant),
            batch_size=self.evaluation.batch_size,
        )
        return [output.trajectory for output in outputs]

    def _redrawn(self, chunk: Sequence[tuple[int, int]], start: int, variant: Variant) -> list[Trajectory]:
        """The model's own first turns, second images from reflections that are not its own."""
        first = self._drawn(chunk, Variant({"mode": "think"}))
        if variant.reflections == "ground truth":
            reflections = [self._true_reflection(i, n, one) for (i, n), one in zip(chunk, first, strict=True)]
        else:
            of_always = self._reflections_of_always()
            half = len(of_always) // 2
            reflections = [of_always[(start + k + half) % len(of_always)] for k in range(len(chunk))]
        images = self.pipe.redraw(first, reflections, self.settings(variant), self.evaluation.batch_size)
        return [_with_turn(t, text, image) for t, text, image in zip(first, reflections, images, strict=True)]

    def _true_reflection(self, index: int, n: int, first: Trajectory) -> str:
        """What is wrong with a first image and how to correct it, by what the label detector finds in it."""
        rng = np.random.default_rng([self.evaluation.seed, index, n])
        pixels = np.asarray(first.image)
        return true_reflection(self.label_detector, self.requests[index], pixels, first.thinking, rng).text

    def _reflections_of_always(self) -> list[str]:
        lines = read_json_lines(self.folder / "always.jsonl")
        if not lines:
            raise ValueError("modes: shuffled takes the reflections of always; name it before")
        return [line["thoughts"][1] for line in lines]

    def _verdict(self, index: int, n: int, trajectory: Trajectory, seconds: float) -> dict[str, Any]:
        request = self.requests[index]
        images = [np.asarray(turn.image) for turn in trajectory.turns if turn.image is not None]
        found = [self.detector.detect(image[None], threshold=SCORE_THRESHOLD)[0] for image in images]
        texts = [turn.thinking for turn in trajectory.turns]
        reflections = [turn.reflection for turn in trajectory.turns]
        return {
            "index": index,
            "image": n,
            "tag": request.tag,
            "prompt": trajectory.prompt,
            "seed": trajectory.seed,
            "right": [world.satisfied(request, seen, threshold=SCORE_THRESHOLD) for seen in found],
            "done": [is_done(said or text or "") for said, text in zip(reflections[1:], texts[1:], strict=True)],
            "seen": [
                [(s.name, s.color, [round(v, 1) for v in s.box], round(s.score, 3)) for s in seen] for seen in found
            ],
            "thoughts": texts,
            "reflections": reflections,
            "planned": [_plans_right(request, text, images[0].shape[1]) for text in texts],
            "stopped": trajectory.stopped,
            "seconds": round(seconds, 3),
        } | _searched(trajectory)


def _searched(trajectory: Trajectory) -> dict[str, Any]:
    """Of a search: which of the images was kept, and how many were drawn in all."""
    if trajectory.search is None:
        return {}
    drawn = [index for index, turn in enumerate(trajectory.turns) if turn.image is not None]
    kept = len(drawn) - 1 if trajectory.best is None else drawn.index(trajectory.best)
    return {"kept": kept, "drawn": trajectory.search.images}


def _plans_right(request: world.Request, text: str | None, size: int) -> bool | None:
    """Whether the layout that a text is, or ends with, would satisfy the request; None where it has none."""
    try:
        layout = text or ""
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
        ValueError: the model, the detector, the prompts or a setting is not usable, or ``out`` holds another
            evaluation or is in use.
    """
    folder = Path(evaluation.out)
    _check_same(folder, evaluation)
    run = _Run(evaluation)
    with locked(folder / ".lock", f"{folder} is in use by another irg bench mini"):
        write_json(folder / "evaluation.json", asdict(evaluation))
        text = table({name: run.results(name) for name in evaluation.modes})
        write_text(folder / "table.md", text + "\n")
    run.pipe.critics.close()
    return text


def _check_same(folder: Path, evaluation: Evaluation) -> None:
    """Lines of different evaluations must not meet in one folder, wherever it lies; variants may be added to it."""
    file = folder / "evaluation.json"
    if not file.is_file():
        return
    before = json.loads(file.read_text(encoding="utf-8"))
    before = {"settings": dict(pair.split("=") for pair in before.pop("options", []))} | before  # of earlier versions
    before = {old_names(Evaluation).get(name, name): value for name, value in before.items()}
    now = json.loads(json.dumps(asdict(evaluation)))
    for record in (before, now):
        record["detector"] = RENAMED.get(record["detector"], record["detector"])
    for name in now.keys() - {"out", "modes", "batch_size", "geneval"}:
        if before.get(name) != now[name]:
            raise ValueError(
                f"{folder} holds an evaluation with {name} {before.get(name)!r}, not {now[name]!r}: choose another out"
            )
