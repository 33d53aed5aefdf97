"""How well a model draws the mini world: held-out prompts of GenEval's six forms, judged by a detector.

``python -m irg.evaluation.mini --model DIR --referee DIR --out DIR`` prints a table of the ways of reasoning and
writes every verdict, so that any number can be computed again without drawing again. Resumes where it was stopped.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from irg import miniworld as world
from irg.miniworld.detector import Detector
from irg.reasoning.pipeline import IRGPipeline
from irg.reasoning.settings import with_options
from irg.reasoning.trajectory import Trajectory

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
SURE = 0.3


@dataclass(frozen=True)
class Evaluation:
    """What is measured. ``prompts`` is the total over the six forms."""

    model: str
    referee: str
    out: str
    prompts: int = 200
    images: int = 1
    modes: tuple[str, ...] = ("direct", "think", "irg")
    rounds: int = 1
    seed: int = 0
    batch: int = 16
    options: tuple[str, ...] = ()
    """Settings to change, each ``name=value`` (``cfg_text_scale=4``, ``improve_cfg_img_scale=1.5``)."""


@dataclass
class Verdicts:
    """Right or wrong for every picture: ``first`` and ``last`` picture of each request, by form."""

    first: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))
    last: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))
    seconds: list[float] = field(default_factory=list)

    def score(self, which: str = "last") -> dict[str, float]:
        """Share of right pictures per form, and ``overall``, the plain mean of the forms (GenEval's way)."""
        per_tag = {tag: float(np.mean(v)) for tag, v in getattr(self, which).items() if v}
        return per_tag | {"overall": float(np.mean(list(per_tag.values())))}

    def changes(self) -> dict[str, float]:
        """Repair (wrong -> right among wrong) and damage (right -> wrong among right) from first to last picture."""
        first = np.concatenate([self.first[tag] for tag in self.first])
        last = np.concatenate([self.last[tag] for tag in self.first])
        return {
            "repair": float(last[~first].mean()) if (~first).any() else float("nan"),
            "damage": float((~last)[first].mean()) if first.any() else float("nan"),
            "wrong_first": int((~first).sum()),
            "right_first": int(first.sum()),
        }


def interval(right: Sequence[bool], seed: int = 0, draws: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of a share."""
    values = np.asarray(right, float)
    means = np.random.default_rng(seed).choice(values, (draws, len(values))).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def held_out_requests(count: int, seed: int) -> list[world.Request]:
    """Requests of the six forms in equal shares, from combinations that training never samples."""
    rng = np.random.default_rng([seed, 2509])
    return [world.sample_request(rng, weights={TAGS[i % 6]: 1.0}, split="test") for i in range(count)]


def run_mode(evaluation: Evaluation, mode: str, pipe: IRGPipeline, referee: Detector) -> Verdicts:
    """Draw and judge all prompts in one mode; verdicts are appended to ``<out>/<mode>.jsonl`` as they come."""
    requests = held_out_requests(evaluation.prompts, evaluation.seed)
    jobs = [(i, n) for i in range(len(requests)) for n in range(evaluation.images)]
    file = Path(evaluation.out) / f"{mode}.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    settings = with_options(pipe.defaults, {"mode": mode, "rounds": evaluation.rounds, **_options(evaluation.options)})
    starts = range(len(lines), len(jobs), evaluation.batch)
    with file.open("a", encoding="utf-8") as out:
        for start in track(starts, description=f"{mode:>6}", disable=not len(starts)):
            chunk = jobs[start : start + evaluation.batch]
            outputs = pipe(
                [world.caption(requests[i]) for i, _ in chunk],
                seed=[1000 * evaluation.seed + 17 * i + n for i, n in chunk],
                settings=settings,
                batch_size=evaluation.batch,
            )
            for (i, n), output in zip(chunk, outputs, strict=True):
                line = _verdict(requests[i], i, n, output.trajectory, referee)
                lines.append(line)
                out.write(json.dumps(line) + "\n")
            out.flush()
    return _collect(lines)


def _verdict(request: world.Request, index: int, n: int, trajectory: Trajectory, referee: Detector) -> dict[str, Any]:
    pictures = [np.asarray(turn.image) for turn in trajectory.turns if turn.image is not None]
    found = [referee.detect(picture[None], threshold=SURE)[0] for picture in pictures]
    return {
        "index": index,
        "image": n,
        "tag": request.tag,
        "prompt": trajectory.prompt,
        "seed": trajectory.seed,
        "right": [world.satisfied(request, seen, threshold=SURE) for seen in found],
        "seen": [[(s.name, s.color, [round(v, 1) for v in s.box], round(s.score, 3)) for s in seen] for seen in found],
        "thoughts": [turn.thinking for turn in trajectory.turns],
        "stopped": trajectory.stopped,
        "seconds": trajectory.seconds,
    }


def _collect(lines: list[dict[str, Any]]) -> Verdicts:
    verdicts = Verdicts()
    for line in lines:
        verdicts.first[line["tag"]].append(line["right"][0])
        verdicts.last[line["tag"]].append(line["right"][-1])
        verdicts.seconds.append(line["seconds"])
    return verdicts


def _options(pairs: Sequence[str]) -> dict[str, Any]:
    options = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator:
            raise ValueError(f"options: {pair!r} should be name=value")
        try:
            options[name] = json.loads(value)
        except json.JSONDecodeError:
            options[name] = value
    return options


def table(results: dict[str, Verdicts]) -> str:
    """Markdown: a row per way of reasoning, and the first pictures of ``irg`` as a row of their own."""
    head = [*TAGS, "overall", "95 % interval", "n"]
    rows = ["| | " + " | ".join(head) + " |", "|---" * (len(head) + 1) + "|"]

    def row(name: str, verdicts: Verdicts, which: str) -> str:
        score = verdicts.score(which)
        every = [right for values in getattr(verdicts, which).values() for right in values]
        low, high = interval(every)
        cells = [f"{100 * score.get(tag, float('nan')):.1f}" for tag in (*TAGS, "overall")]
        return f"| {name} | " + " | ".join([*cells, f"{100 * low:.1f}-{100 * high:.1f}", str(len(every))]) + " |"

    for mode, verdicts in results.items():
        if mode == "irg":
            rows.append(row("irg, first picture", verdicts, "first"))
        rows.append(row(mode, verdicts, "last"))
    if "irg" in results:
        c = results["irg"].changes()
        rows.append("")
        rows.append(
            f"Reflection: repair {100 * c['repair']:.1f} % of {c['wrong_first']} wrong first pictures, "
            f"damage {100 * c['damage']:.1f} % of {c['right_first']} right ones."
        )
    return "\n".join(rows)


def evaluate(evaluation: Evaluation) -> str:
    """Run everything; returns the table and writes it with the settings to ``<out>``."""
    folder = Path(evaluation.out)
    folder.mkdir(parents=True, exist_ok=True)
    pipe = IRGPipeline.from_pretrained(evaluation.model)
    referee = Detector.load(evaluation.referee)
    results = {mode: run_mode(evaluation, mode, pipe, referee) for mode in evaluation.modes}
    text = table(results)
    (folder / "table.md").write_text(text + "\n", encoding="utf-8")
    (folder / "evaluation.json").write_text(json.dumps(asdict(evaluation), indent=1) + "\n", encoding="utf-8")
    return text


if __name__ == "__main__":
    import tyro

    print(evaluate(tyro.cli(Evaluation)))
