"""``irg bench score``: find images and prompts, let judges answer, sum up, write the result and its report.

SCORES/judgements.jsonl    raw answers (:mod:`irg.evaluation.judging`)
SCORES/result.json         the numbers, which judge saw which prompts, what is missing
SCORES/report/index.html   every prompt with its images and verdicts
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console

from irg import promptsets
from irg.evaluation.bench_report import requests_of, write_report
from irg.evaluation.benchmarks import oneig
from irg.evaluation.benchmarks.base import Benchmark, ScoringOptions, WiseParse
from irg.evaluation.benchmarks.geneval_rules import COUNTING_SCORE_ABOVE
from irg.evaluation.benchmarks.registry import BENCHMARKS
from irg.evaluation.image_folders import slug
from irg.evaluation.judges.base import Judge
from irg.evaluation.judging import ImageSet, JudgedImage, identity_of, judge_images, scores_folder, total_usage
from irg.evaluation.results import Result, rubrics_sha256, turn_scores
from irg.evaluation.runs import RUN_FILE, RunInfo, Sample, read_trajectory, seconds_per_request
from irg.promptsets import PromptSet

_ONEIG_KINDS = {
    "alignment": "chat",
    "text": "ocr",
    "reasoning": "reasoning",
    "style": "style",
    "diversity": "diversity",
}


@dataclass(frozen=True)
class ScoreRequest:
    """What to score; ``irg bench score --help`` explains the fields."""

    benchmark: str
    images: Path
    out: Path | None = None
    turns: Literal["ends", "last", "all"] = "all"
    official_skips: bool = False
    wise_parse: WiseParse = "tolerant"
    counting_above: float = COUNTING_SCORE_ABOVE
    rubric: str | None = None
    retry_failed: bool = False
    prompts: str | None = None
    variant: str | None = None
    model_name: str | None = None
    samples: int | None = None
    text_extra: bool = False
    offline: bool = False

    def check(self) -> None:
        """Check what can be checked before a judge is loaded.

        Raises:
            ValueError: there is no such folder, or it is a run of another benchmark.
        """
        if not self.images.is_dir():
            raise ValueError(f"--images {self.images}: no such folder")
        most = BENCHMARKS[self.benchmark].layout.max_samples
        if self.samples is not None and not 1 <= self.samples <= most:
            raise ValueError(f"--num-images must be 1 to {most}, got {self.samples}")
        if (self.images / RUN_FILE).is_file():
            info = RunInfo.load(self.images)
            if info.benchmark != self.benchmark:
                raise ValueError(f"--images {self.images}: is a run of {info.benchmark}, not of {self.benchmark}")
            if self.samples not in (None, info.samples):
                raise ValueError(f"--num-images {self.samples}: that run has {info.samples} images a prompt")
            if self.variant not in (None, info.variant):
                raise ValueError(f"--variant {self.variant}: that run was drawn from {info.variant!r}")


def score(request: ScoreRequest, judges: Sequence[Judge], console: Console) -> tuple[Path, Result]:
    """Judge, sum up, write result and report; returns the folder of the score and the result.

    Raises:
        ValueError: images or prompts are missing or not what they should be, or a judge can't work.
    """
    benchmark = BENCHMARKS[request.benchmark]
    info = RunInfo.load(request.images) if (request.images / RUN_FILE).is_file() else None
    prompt_set = promptsets.load(
        request.benchmark,
        request.prompts or _path_of_prompts(info),
        variant=info.variant if info else request.variant,
        offline=request.offline,
        say=console.print,
    )
    if prompt_set.variant == "verified":
        raise ValueError("WISE verified is a protocol of its own, which is not scored here; the paper's is legacy")
    images = _run_images(request, info, prompt_set) if info else _folder_images(request, benchmark, prompt_set)
    options = ScoringOptions(request.wise_parse, request.counting_above, request.rubric, request.text_extra)
    if options.tiif_text and not any("ocr" in judge.kinds for judge in judges):
        raise ValueError("--text-extra needs a judge that reads text, such as ocr")
    base = request.out or (request.images / "scores" if info else Path(f"{request.images}-scores"))
    folder = scores_folder(base, judges, options)
    items = judge_images(benchmark, images, judges, options, folder, console, request.retry_failed)
    usage, cost = total_usage(folder)
    result = replace(_result(request, info, prompt_set, images, items, judges, options), usage=usage, cost=cost)
    result.save(folder)
    requests = requests_of(items, request.images if info else None, request.official_skips)
    drawn = [one for one in requests if info or any(turn.image for turn in one.turns)]
    write_report(folder / "report", result, drawn)
    return folder, result


def _path_of_prompts(info: RunInfo | None) -> str | None:
    """The path that a run's prompts were read from (``--prompts``), if it is still there."""
    if info is None or not Path(info.prompts_source).is_absolute() or not Path(info.prompts_source).exists():
        return None
    return info.prompts_source


def _run_images(request: ScoreRequest, info: RunInfo, prompt_set: PromptSet) -> ImageSet:
    if prompt_set.sha256 != info.prompts_sha256:
        raise ValueError(
            f"{request.images}: was drawn from prompts {info.prompts_sha256[:12]}, these are {prompt_set.sha256[:12]}; "
            "give the same ones with --prompts"
        )
    known = prompt_set.by_id()
    last = info.max_turns
    turns = {"ends": sorted({1, last}), "last": [last], "all": list(range(1, last + 1))}[request.turns]
    folders = {turn: request.images / "turns" / str(turn) for turn in turns}
    return ImageSet(folders, tuple(known[one] for one in info.prompt_ids), info.samples, info.model_name)


def _folder_images(request: ScoreRequest, benchmark: Benchmark, prompt_set: PromptSet) -> ImageSet:
    name = request.model_name or request.images.resolve().name
    samples = benchmark.layout.samples if request.samples is None else request.samples
    return ImageSet({1: request.images}, prompt_set.prompts, samples, name)


def _result(
    request: ScoreRequest,
    info: RunInfo | None,
    prompt_set: PromptSet,
    images: ImageSet,
    items: Sequence[JudgedImage],
    judges: Sequence[Judge],
    options: ScoringOptions,
) -> Result:
    benchmark = BENCHMARKS[request.benchmark]
    covered = {item.prompt.id for item in items if item.state != "not covered"}
    cost = _cost(request.images, images, info) if info else None
    drawn = cost.images_by_turn if cost else []
    return Result(
        benchmark=benchmark.name,
        model=info.model if info else request.model_name or slug(str(request.images.resolve())),
        mode=info.mode if info else "",
        judge=" + ".join(judge.label for judge in judges),
        column_judges=_column_judges(benchmark, judges),
        judge_identity=identity_of(judges, options),
        prompts=prompt_set.label,
        prompts_sha256=prompt_set.sha256,
        license=prompt_set.license,
        official_skips=request.official_skips,
        coverage={
            "in_set": len(prompt_set),
            "covered": info.covered if info and info.covered_by else _covered_by(judges, prompt_set),
            "covered_by": info.covered_by if info and info.covered_by else " + ".join(judge.label for judge in judges),
            "chosen": len(covered),
            "samples": images.samples,
        },
        turns=turn_scores(benchmark, items, list(images.folders), request.official_skips, drawn),
        unit=benchmark.unit,
        seconds=cost.seconds if cost else None,
        tokens=cost.tokens if cost else None,
        latency_by_turn=cost.latency_by_turn if cost else [],
        run=asdict(info) if info else {},
        options=asdict(options),
        rubrics_sha256=rubrics_sha256(),
    )


def _covered_by(judges: Sequence[Judge], prompt_set: PromptSet) -> int:
    """How many of all prompts the judges cover, whatever ``--limit`` left undrawn."""
    return sum(all(judge.covers(prompt) for judge in judges) for prompt in prompt_set.prompts)


def _column_judges(benchmark: Benchmark, judges: Sequence[Judge]) -> dict[str, str]:
    """Column -> label of its judge; only OneIG's columns may have different ones."""
    if benchmark.name != "oneig":
        return {}
    found = {}
    for column in oneig.DIMENSIONS:
        judge = next((judge for judge in judges if _ONEIG_KINDS[column] in judge.kinds), None)
        if judge is not None:
            found[column] = judge.label
    return found


@dataclass(frozen=True)
class _Cost:
    """Means over the requests of a run: wall-clock seconds, tokens, seconds of each turn, images up to each turn."""

    seconds: float | None
    tokens: float
    latency_by_turn: list[float]
    images_by_turn: list[float]


def _cost(folder: Path, images: ImageSet, info: RunInfo) -> _Cost | None:
    """What a run's requests took; None if nothing is drawn."""
    samples = (Sample(prompt, number) for prompt in images.prompts for number in range(info.samples))
    paths = (sample.trajectory_file(folder) for sample in samples)
    records = [read_trajectory(path) for path in paths if path.is_file()]
    if not records:
        return None
    requests: list[list[dict[str, Any]]] = [record["turns"] for record in records]
    longest = max(len(turns) for turns in requests)
    reached = [[turns[k] for turns in requests if k < len(turns)] for k in range(longest)]
    drawn = [_images_drawn(record) for record in records]
    return _Cost(
        seconds_per_request(folder),
        float(np.mean([sum(turn["tokens"] for turn in turns) for turns in requests])),
        [float(np.mean([sum(turn["seconds"].values()) for turn in turns])) for turns in reached],
        [float(np.mean([sum(min(one, k + 1) for one in each) for each in drawn])) for k in range(info.max_turns)],
    )


def _images_drawn(record: dict[str, Any]) -> list[int]:
    """How many images each candidate of a request has drawn."""
    if "search" in record:
        return [len(one["scores"]) for one in record["search"]["candidates"]]
    return [sum(turn.get("image") is not None for turn in record["turns"])]
