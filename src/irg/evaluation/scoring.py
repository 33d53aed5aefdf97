"""``irg bench score``: ask judges about a folder of images, keep every raw answer, sum up.

    SCORES/judgements.jsonl    one raw answer a line, appended as it comes; never asked twice for the same image
    SCORES/result.json         the numbers, who judged, by which prompts, what is missing
    SCORES/report/index.html   to look at

Grades are always computed from the raw answers, so a score can be had again (or differently) without a judge.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from irg.evaluation.benchmarks.benchmark import Ask, Benchmark, Grade, Options
from irg.evaluation.image_folders import ImageFile
from irg.evaluation.judges.base import PASSING, Answer, Job, Judge
from irg.evaluation.runs import lock, progress
from irg.promptsets import BenchPrompt

JUDGEMENTS = "judgements.jsonl"


@dataclass(frozen=True)
class Images:
    """Where the images of a score lie: per turn (1 is the first) a folder in the official layout."""

    folders: dict[int, Path]
    prompts: tuple[BenchPrompt, ...]
    samples: int
    model_name: str


@dataclass
class Judged:
    """One image after judging.

    Attributes:
        state: ``graded``; ``missing``: no such file; else why it has no grade (a Failure, or ``not covered``).
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
    """The raw answers of a scores folder: key -> line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[str, dict[str, Any]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")
        try:
            lock(self._file, f"{path}: another irg bench score is at work on it")
            self._read()  # only now: what another one wrote is not judged again
        except ValueError:
            self._file.close()
            raise

    def _read(self) -> None:
        content = self.path.read_bytes()
        if content and not content.endswith(b"\n"):  # a crash in the middle of a line: that answer is asked again
            content = content[: content.rfind(b"\n") + 1]
            with self.path.open("r+b") as file:
                file.truncate(len(content))
        for number, line in enumerate(content.decode("utf-8").split("\n"), start=1):
            if line.strip():
                try:
                    entry = json.loads(line)
                    self.lines[entry["key"]] = entry
                except (json.JSONDecodeError, KeyError, TypeError) as error:
                    raise ValueError(f"{self.path}, line {number}: damaged; remove that line and run again") from error

    def add(self, job: Job, judge: Judge, answer: Answer) -> None:
        """Append one answer."""
        entry = {
            "key": job.key,
            "prompt": job.prompt.id,
            "sample": job.sample,
            "turn": job.turn,
            "image_sha256": job.image.sha256,
            "kind": job.ask.kind,
            "name": job.ask.name,
            "judge": judge.label,
            "raw": answer.raw,
        }
        entry |= {
            name: getattr(answer, name) for name in ("failure", "message", "usage", "cost") if getattr(answer, name)
        }
        self.lines[job.key] = entry
        self._file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self._file.flush()

    def settled(self, key: str, again: bool) -> bool:
        """Whether this need not be asked: answered, or failed in a way that asking again would not mend."""
        entry = self.lines.get(key)
        if entry is None:
            return False
        failure = entry.get("failure")
        return failure is None or (failure not in PASSING and not again)

    def close(self) -> None:
        self._file.close()


def spent(folder: Path) -> tuple[dict[str, int], float]:
    """Tokens by kind and cost of all answers of a scores folder, whenever they were paid for."""
    usage, cost = Counter[str](), 0.0
    for line in (folder / JUDGEMENTS).read_text(encoding="utf-8").split("\n"):
        entry = json.loads(line) if line else {}
        usage.update(entry.get("usage", {}))
        cost += entry.get("cost", 0.0)
    return dict(usage), cost


def judge_images(
    benchmark: Benchmark,
    images: Images,
    judges: Sequence[Judge],
    options: Options,
    folder: Path,
    console: Console,
    again: bool = False,
) -> list[Judged]:
    """Ask whatever is not settled, and grade every image of every turn.

    Args:
        again: ask refused and unusable answers again too.

    Raises:
        ValueError: there is no image, no judge answers the benchmark's questions, or a judge can't work.
    """
    asker = _Asker(benchmark, judges, options)
    items = [_look(benchmark, images, judges, place) for place in _places(images)]
    if all(item.image is None for item in items):
        place = benchmark.layout.place(images.prompts[0], 0, images.model_name)
        where = next(iter(images.folders.values())) / place
        raise ValueError(f"no image is where {benchmark.title} has them, such as {where}; see --model-name")
    jobs = {job.key: (job, judge) for item in items for job, judge in asker.jobs(item)}
    if not jobs and any(item.state == "unasked" for item in items):
        names = ", ".join(judge.label for judge in judges)
        raise ValueError(f"{names} can't answer any of {benchmark.title}'s questions; see docs/benchmarks.md")
    store = Judgements(folder / JUDGEMENTS)
    try:
        todo = [pair for key, pair in jobs.items() if not store.settled(key, again)]
        if todo:
            _ask_all(todo, len(jobs), store, console, benchmark.name)
    finally:
        store.close()
    for item in items:
        _grade(item, benchmark, asker, store, options)
    return items


def _places(images: Images) -> Iterator[tuple[BenchPrompt, int, int]]:
    for prompt in images.prompts:
        for sample in range(images.samples):
            for turn in images.folders:
                yield prompt, sample, turn


def _look(benchmark: Benchmark, images: Images, judges: Sequence[Judge], place: tuple[BenchPrompt, int, int]) -> Judged:
    prompt, sample, turn = place
    try:
        image = benchmark.layout.find(images.folders[turn], prompt, sample, images.model_name)
    except ValueError as error:
        return Judged(prompt, sample, turn, None, "unreadable", message=str(error))
    if not all(judge.covers(prompt) for judge in judges):
        return Judged(prompt, sample, turn, image, "not covered")
    return Judged(prompt, sample, turn, image, "missing" if image is None else "unasked")


class _Asker:
    """Which judge is asked what."""

    def __init__(self, benchmark: Benchmark, judges: Sequence[Judge], options: Options) -> None:
        self.benchmark, self.judges, self.options = benchmark, judges, options

    def asks(self, prompt: BenchPrompt) -> list[tuple[Ask, Judge]]:
        """The questions that somebody can answer; a question of a kind that no judge takes is left out.

        Raises:
            ValueError: nobody can answer any question of a benchmark that has only one.
        """
        every = self.benchmark.asks(prompt, self.options)
        found = [(ask, judge) for ask in every if (judge := self._judge(ask)) is not None]
        if not found and len({ask.kind for ask in every}) == 1:
            names = ", ".join(judge.label for judge in self.judges)
            raise ValueError(f"{self.benchmark.name} needs a judge that answers {every[0].kind!r}; {names} does not")
        return found

    def _judge(self, ask: Ask) -> Judge | None:
        return next((judge for judge in self.judges if ask.kind in judge.kinds), None)

    def jobs(self, item: Judged) -> Iterator[tuple[Job, Judge]]:
        if item.image is None or item.state != "unasked":
            return
        for ask, judge in self.asks(item.prompt):
            yield Job(item.prompt, item.sample, item.turn, item.image, ask), judge


def _ask_all(todo: Sequence[tuple[Job, Judge]], total: int, store: Judgements, console: Console, name: str) -> None:
    """Every judge its own jobs, with a bar; each answer is on disk before the next is looked at."""
    failures: Counter[str] = Counter()
    cost, usage = 0.0, Counter[str]()
    with progress(console) as bar:
        task = bar.add_task(f"judging {name}", total=total, completed=total - len(todo))
        for judge in dict.fromkeys(judge for _, judge in todo):
            for job, answer in judge.answers([job for job, its in todo if its is judge]):
                store.add(job, judge, answer)
                cost += 0.0 if answer.cached else answer.cost
                usage.update({} if answer.cached else answer.usage)
                failures.update([answer.failure] if answer.failure else [])
                bar.advance(task)
    if usage:
        console.print(f"tokens: {', '.join(f'{n} {c:,}' for n, c in usage.items())}; cost {cost:.4g}", highlight=False)
    for failure, count in failures.items():
        answers = "1 answer" if count == 1 else f"{count} answers"
        console.print(f"{answers} failed ({failure.replace('_', ' ')}); see {store.path}", highlight=False)


def _grade(item: Judged, benchmark: Benchmark, asker: _Asker, store: Judgements, options: Options) -> None:
    if item.state != "unasked":
        return
    entries = [(job.ask.name, store.lines.get(job.key)) for job, _ in asker.jobs(item)]
    failed = next((entry for _, entry in entries if entry is None or entry.get("failure")), None)
    item.answers = {name: entry["raw"] for name, entry in entries if entry is not None}
    if not entries:
        item.state = "no judge"
    elif failed is not None or any(entry is None for _, entry in entries):
        item.state = failed["failure"] if failed else "outage"
        item.message = failed.get("message", "") if failed else "not asked yet"
    else:
        try:
            item.grade = benchmark.grade(item.prompt, item.answers, options)
            item.state = "graded"
        except (ValueError, KeyError, TypeError) as error:
            item.state, item.message = "bad_answer", str(error)


def scores_folder(base: Path, judges: Sequence[Judge], options: Options) -> Path:
    """``BASE/<judge>-<8 letters>``: another judge, model, rubric or version never shares a folder."""
    identity = identity_of(judges, options)
    label = "+".join("".join(c if c.isalnum() or c in "._-" else "-" for c in judge.label) for judge in judges)
    return base / f"{label}-{hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]}"


def identity_of(judges: Iterable[Judge], options: Options) -> dict[str, Any]:
    """What the answers depend on. How they are parsed and counted is not part of it: that is done anew each time."""
    return {"judges": [judge.identity() for judge in judges], "rubric": options.rubric}
