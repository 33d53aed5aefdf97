"""Let judges answer a benchmark's questions about a folder of images, keep every raw answer, and grade the images.

Raw answers are appended to ``judgements.jsonl`` as they come; a question about an image is never sent twice. Grades are
always computed from the raw answers, so a score can be computed anew, by other rules too, without a judge.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

from irg import files
from irg.evaluation.benchmarks.base import Benchmark, Grade, Question, ScoringOptions
from irg.evaluation.image_folders import ImageFile
from irg.evaluation.judges.base import RETRYABLE, Answer, Job, Judge
from irg.promptsets import BenchPrompt

JUDGEMENTS = "judgements.jsonl"


@dataclass(frozen=True)
class ImageSet:
    """The images to score: per turn (1 is the first) a folder in the official layout."""

    folders: dict[int, Path]
    prompts: tuple[BenchPrompt, ...]
    samples: int
    model_name: str


@dataclass
class JudgedImage:
    """One image after judging.

    Attributes:
        state: ``pending`` until it is judged; ``graded``; ``missing``: no such file; else why it has no grade (a
            Failure, ``not covered`` or ``no judge``).
    """

    prompt: BenchPrompt
    sample: int
    turn: int
    image: ImageFile | None
    state: str = "missing"
    grade: Grade | None = None
    answers: dict[str, Any] = field(default_factory=dict)
    message: str = ""


class Judgements:
    """The raw answers of a scores folder, by key. Open it only with the folder's lock held.

    Raises:
        ValueError: a line is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = files.JsonLines(path)
        try:
            self.entries = {entry["key"]: entry for entry in files.read_json_lines(path)}
        except (ValueError, KeyError) as error:
            self._file.close()
            what = f"{path}: a line has no key" if isinstance(error, KeyError) else error
            raise ValueError(f"{what}; remove that line and run again") from error

    def add(self, job: Job, judge: Judge, answer: Answer) -> None:
        """Append one answer."""
        entry = {
            "key": job.key,
            "prompt": job.prompt.id,
            "sample": job.sample,
            "turn": job.turn,
            "image_sha256": job.image.sha256,
            "kind": job.question.kind,
            "name": job.question.name,
            "judge": judge.label,
            "raw": answer.raw,
        }
        entry |= {
            name: getattr(answer, name) for name in ("failure", "message", "usage", "cost") if getattr(answer, name)
        }
        self.entries[job.key] = entry
        self._file.append(entry)

    def is_final(self, key: str, retry_failed: bool) -> bool:
        """Whether this need not be sent: it was answered, or failed in a way that is not to be tried again."""
        entry = self.entries.get(key)
        if entry is None:
            return False
        failure = entry.get("failure")
        return failure is None or (failure not in RETRYABLE and not retry_failed)

    def close(self) -> None:
        self._file.close()


def total_usage(folder: Path) -> tuple[dict[str, int], float]:
    """Tokens by kind and cost of all answers of a scores folder, of earlier sessions too."""
    usage, cost = Counter[str](), 0.0
    for entry in files.read_json_lines(folder / JUDGEMENTS):
        usage.update(entry.get("usage", {}))
        cost += entry.get("cost", 0.0)
    return dict(usage), cost


def judge_images(
    benchmark: Benchmark,
    images: ImageSet,
    judges: Sequence[Judge],
    options: ScoringOptions,
    folder: Path,
    console: Console,
    retry_failed: bool = False,
) -> list[JudgedImage]:
    """Send every question that has no answer yet to its judge, and grade every image of every turn.

    Args:
        folder: where ``judgements.jsonl`` is.
        retry_failed: send questions that were refused or badly answered again too.

    Raises:
        ValueError: there is no image, no judge answers the benchmark's questions, or a judge can't work.
    """
    router = _Router(benchmark, judges, options)
    items = [_find(benchmark, images, judges, place) for place in _places(images)]
    if all(item.image is None for item in items):
        place = benchmark.layout.place(images.prompts[0], 0, images.model_name)
        where = next(iter(images.folders.values())) / place
        hint = "; see --model-name" if benchmark.layout.names_model else ""
        raise ValueError(f"no image is where {benchmark.title} has them, such as {where}{hint}")
    jobs = {job.key: (job, judge) for item in items for job, judge in router.jobs(item)}
    if not jobs and any(item.state == "pending" for item in items):
        names = ", ".join(judge.label for judge in judges)
        raise ValueError(f"{names} can't answer any of {benchmark.title}'s questions; see docs/benchmarks.md")
    with files.locked(folder / ".lock", f"{folder}: another irg bench score is at work on it"):
        judgements = Judgements(folder / JUDGEMENTS)
        try:
            todo = [pair for key, pair in jobs.items() if not judgements.is_final(key, retry_failed)]
            if todo:
                _judge_all(todo, len(jobs), judgements, console, benchmark.name)
        finally:
            judgements.close()
    for item in items:
        _grade(item, benchmark, router, judgements, options)
    return items


def _places(images: ImageSet) -> Iterator[tuple[BenchPrompt, int, int]]:
    """(prompt, sample, turn) of every image."""
    return ((prompt, n, turn) for prompt in images.prompts for n in range(images.samples) for turn in images.folders)


def _find(
    benchmark: Benchmark, images: ImageSet, judges: Sequence[Judge], place: tuple[BenchPrompt, int, int]
) -> JudgedImage:
    prompt, sample, turn = place
    try:
        image = benchmark.layout.find(images.folders[turn], prompt, sample, images.model_name, images.samples)
    except ValueError as error:
        return JudgedImage(prompt, sample, turn, None, "unreadable", message=str(error))
    if not all(judge.covers(prompt) for judge in judges):
        return JudgedImage(prompt, sample, turn, image, "not covered")
    return JudgedImage(prompt, sample, turn, image, "missing" if image is None else "pending")


class _Router:
    """Which judge answers which question."""

    def __init__(self, benchmark: Benchmark, judges: Sequence[Judge], options: ScoringOptions) -> None:
        self.benchmark, self.judges, self.options = benchmark, judges, options

    def questions(self, prompt: BenchPrompt) -> list[tuple[Question, Judge]]:
        """The questions that a judge can answer; a question of a kind that no judge takes is left out.

        Raises:
            ValueError: no judge can answer any question of a benchmark that has one kind only.
        """
        every = self.benchmark.questions(prompt, self.options)
        found = [(question, judge) for question in every if (judge := self._judge(question)) is not None]
        if not found and len({question.kind for question in every}) == 1:
            names = ", ".join(judge.label for judge in self.judges)
            raise ValueError(f"{self.benchmark.name} needs a judge that answers {every[0].kind!r}; {names} does not")
        return found

    def _judge(self, question: Question) -> Judge | None:
        return next((judge for judge in self.judges if question.kind in judge.kinds), None)

    def jobs(self, item: JudgedImage) -> Iterator[tuple[Job, Judge]]:
        if item.image is None or item.state != "pending":
            return
        for question, judge in self.questions(item.prompt):
            yield Job(item.prompt, item.sample, item.turn, item.image, question), judge


def _judge_all(
    todo: Sequence[tuple[Job, Judge]], total: int, judgements: Judgements, console: Console, name: str
) -> None:
    """Each judge its own jobs, with a progress bar; each answer is on disk before the next is taken."""
    failures: dict[str, list[str]] = {}
    cost, usage = 0.0, Counter[str]()
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(f"judging {name}", total=total, completed=total - len(todo))
        for judge in dict.fromkeys(judge for _, judge in todo):
            for job, answer in judge.answers([job for job, its in todo if its is judge]):
                judgements.add(job, judge, answer)
                cost += 0.0 if answer.cached else answer.cost
                usage.update({} if answer.cached else answer.usage)
                if answer.failure:
                    failures.setdefault(answer.failure, []).append(answer.message)
                bar.advance(task)
    if usage:
        console.print(f"tokens: {', '.join(f'{n} {c:,}' for n, c in usage.items())}; cost {cost:.4g}", highlight=False)
    for failure, messages in failures.items():
        answers = "1 answer" if len(messages) == 1 else f"{len(messages)} answers"
        reason = f"{failure.replace('_', ' ')}: {messages[0]}"
        console.print(f"{answers} failed ({reason}); see {judgements.path}", highlight=False, markup=False)


def _grade(
    item: JudgedImage, benchmark: Benchmark, router: _Router, judgements: Judgements, options: ScoringOptions
) -> None:
    """Set the image's state, and its grade or message, from the judgements."""
    if item.state != "pending":
        return
    entries = {job.question.name: judgements.entries.get(job.key) for job, _ in router.jobs(item)}
    item.answers = {name: entry["raw"] for name, entry in entries.items() if entry is not None}
    failed = [entry for entry in entries.values() if entry is None or entry.get("failure")]
    if not entries:
        item.state = "no judge"
    elif failed:
        first = failed[0] or {"failure": "outage", "message": "not judged yet"}
        item.state, item.message = first["failure"], first.get("message", "")
    else:
        try:
            item.grade = benchmark.grade(item.prompt, item.answers, options)
            item.state = "graded"
        except (ValueError, KeyError, TypeError) as error:
            item.state, item.message = "bad_answer", str(error)


def scores_folder(base: Path, judges: Sequence[Judge], options: ScoringOptions) -> Path:
    """``BASE/<judge>-<8 digits of a hash>``: another judge, model, rubric or version never shares a folder."""
    identity = identity_of(judges, options)
    label = "+".join("".join(c if c.isalnum() or c in "._-" else "-" for c in judge.label) for judge in judges)
    return base / f"{label}-{hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]}"


def identity_of(judges: Iterable[Judge], options: ScoringOptions) -> dict[str, Any]:
    """What the answers depend on. How they are parsed and counted is not part of it: grades are computed anew."""
    return {"judges": [judge.identity() for judge in judges], "rubric": options.rubric}
