"""``irg bench run``: draw a benchmark's prompts, into a folder from which it can go on after any interruption.

RUN/run.json                 what is drawn, with which model and settings; everything that must not change
RUN/images/                  the final images, laid out as the official scripts want them
RUN/turns/1/, turns/2/ ...   the image as it stands after each turn, laid out the same way
RUN/trajectories/ID/0.json   thoughts, settings, times of a prompt's first image; written last, so that an
                             image without it is drawn again
"""

import hashlib
import json
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from irg.evaluation.image_folders import LAYOUTS, Layout, safe_name
from irg.promptsets import BenchPrompt, PromptSet
from irg.reasoning.settings import Mode
from irg.results.trajectory import Trajectory
from irg.version import __version__

if TYPE_CHECKING:
    from irg.reasoning.pipeline import IRGPipeline

SCHEMA = 1
RUN_FILE, SESSIONS_FILE = "run.json", "sessions.jsonl"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class RunInfo:
    """What ``run.json`` holds."""

    benchmark: str
    variant: str
    prompts_sha256: str
    prompts_source: str
    official_prompts: bool
    license: str
    prompt_ids: tuple[str, ...]
    prompts_in_set: int
    covered_by: str | None
    """The judge whose vocabulary the prompts were chosen by; prompts it does not know were not drawn."""
    covered: int
    """How many prompts of the set that vocabulary covers (all of them without one)."""
    samples: int
    model: str
    model_fingerprint: str
    model_name: str
    """The folder name that stands for the model in official layouts."""
    mode: str
    settings: dict[str, Any]
    seed: int
    weights: str = ""
    """``ema`` or ``model``; empty in records of earlier versions."""
    precision: str = ""
    """The numbers that it was drawn with: float32, bf16, int8 or int4."""
    irg_version: str = __version__
    schema: int = SCHEMA

    def save(self, folder: Path) -> None:
        write_whole(folder / RUN_FILE, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "RunInfo":
        """Read ``run.json``.

        Raises:
            ValueError: it is missing or not what it should be.
        """
        path = folder / RUN_FILE
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data.get("schema") != SCHEMA:
                raise ValueError(f"schema {data.get('schema')} is not known to this irg ({__version__})")
            return cls(**{**data, "prompt_ids": tuple(data["prompt_ids"])})
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ValueError(f"{path}: not the record of a benchmark run: {reason}") from error


@dataclass(frozen=True)
class Sample:
    """One image to draw: sample ``number`` of a prompt."""

    prompt: BenchPrompt
    number: int

    def seed(self, base: int) -> int:
        """Its own, whatever else is drawn: 32 bits of a hash of the run's seed, the prompt's id and the number."""
        told = f"{base}/{self.prompt.id}/{self.number}".encode()
        return int.from_bytes(hashlib.sha256(told).digest()[:4], "big")


def pick(prompts: Sequence[BenchPrompt], limit: int | None) -> tuple[BenchPrompt, ...]:
    """At most ``limit`` prompts, as evenly from all tags as can be, the first ones of each; in the set's order.

    Raises:
        ValueError: the limit is below 1.
    """
    if limit is None:
        return tuple(prompts)
    if limit < 1:
        raise ValueError(f"--limit must be at least 1, got {limit}")
    tags: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        tags.setdefault(prompt.tag, []).append(index)
    ranked = sorted((rank, index) for indices in tags.values() for rank, index in enumerate(indices))
    return tuple(prompts[index] for index in sorted(index for _, index in ranked[:limit]))


def plan(prompt_set: PromptSet, chosen: Sequence[BenchPrompt], samples: int | None, **facts: Any) -> RunInfo:
    """The record of a run that is about to begin."""
    wanted = LAYOUTS[prompt_set.name].samples if samples is None else samples
    most = LAYOUTS[prompt_set.name].most
    if not 1 <= wanted <= most:
        place = "has a place for one image a prompt" if most == 1 else f"takes 1 to {most} images a prompt"
        raise ValueError(f"{prompt_set.name} {place}, got --num-images {wanted}")
    return RunInfo(
        benchmark=prompt_set.name,
        variant=prompt_set.variant,
        prompts_sha256=prompt_set.sha256,
        prompts_source=prompt_set.source,
        official_prompts=prompt_set.official,
        license=prompt_set.license,
        prompt_ids=tuple(prompt.id for prompt in chosen),
        prompts_in_set=len(prompt_set),
        samples=wanted,
        **facts,
    )


def begin(folder: Path, info: RunInfo, resume: bool) -> None:
    """Start a run's folder, or make sure that the run in it is this one.

    Raises:
        FileExistsError: there is a run (and ``resume`` is off), or something else.
        ValueError: the run there differs; the field is named.
    """
    if (folder / RUN_FILE).is_file():
        if not resume:
            raise FileExistsError(f"{folder}: holds a run; give --resume to go on with it, or another --out")
        before = RunInfo.load(folder)
        same = replace(before, irg_version=info.irg_version, prompts_source=info.prompts_source)
        same = replace(same, weights=before.weights or info.weights, precision=before.precision or info.precision)
        grown = set(before.prompt_ids) < set(info.prompt_ids)  # a higher --limit, or none
        if grown:
            same = replace(same, prompt_ids=info.prompt_ids)
        for name, value in asdict(info).items():
            if asdict(same)[name] != value:
                raise ValueError(
                    f"{folder}: can't go on, {name} was {_short(asdict(same)[name])} and is {_short(value)}; "
                    "give another --out"
                )
        if grown:
            info.save(folder)
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder}: is not empty and holds no run; give another --out")
    folder.mkdir(parents=True, exist_ok=True)
    info.save(folder)


def missing(folder: Path, info: RunInfo, prompts: Sequence[BenchPrompt]) -> list[Sample]:
    """The images of a run that are not finished."""
    layout = LAYOUTS[info.benchmark]
    wanted = [Sample(prompt, number) for prompt in prompts for number in range(info.samples)]
    return [one for one in wanted if not _finished(folder, info, layout, one)]


def _finished(folder: Path, info: RunInfo, layout: Layout, one: Sample) -> bool:
    if not trajectory_file(folder, one).is_file():
        return False
    return (folder / "images" / layout.place(one.prompt, one.number, info.model_name)).is_file()


def trajectory_file(folder: Path, one: Sample) -> Path:
    """Where the record of an image lies."""
    return folder / "trajectories" / one.prompt.id / f"{one.number}.json"


def draw(
    folder: Path, info: RunInfo, prompts: Sequence[BenchPrompt], pipe: "IRGPipeline", batch: int, console: Console
) -> int:
    """Draw what is missing; returns how many images were. An interruption loses only those in flight.

    Raises:
        ValueError: another process is drawing this run.
    """
    with (folder / SESSIONS_FILE).open("a", encoding="utf-8") as sessions:
        lock(sessions, f"{folder}: another irg bench run is drawing it")
        return _draw(folder, info, prompts, pipe, batch, console, sessions)


def _draw(
    folder: Path,
    info: RunInfo,
    prompts: Sequence[BenchPrompt],
    pipe: "IRGPipeline",
    batch: int,
    console: Console,
    sessions: TextIO,
) -> int:
    todo = missing(folder, info, prompts)
    total = len(prompts) * info.samples
    if not todo:
        return 0
    begun, drawn = time.perf_counter(), 0
    try:
        with progress(console) as bar:
            task = bar.add_task(f"{info.benchmark} {info.mode}", total=total, completed=total - len(todo))
            for one, trajectory in _finished_requests(pipe, info, todo, batch):
                save(folder, info, one, trajectory)
                drawn += 1
                bar.advance(task)
    finally:
        line = {"images": drawn, "seconds": round(time.perf_counter() - begun, 3), "batch": batch} | versions()
        sessions.write(json.dumps(line) + "\n")
    return drawn


def seconds_a_request(folder: Path) -> float | None:
    """Wall-clock time of a whole request (all its turns), requests running together; None before any was drawn."""
    path = folder / SESSIONS_FILE
    lines = [_session(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    drawn = sum(line["images"] for line in lines)
    return sum(line["seconds"] for line in lines) / drawn if drawn else None


def _session(line: str) -> dict[str, Any]:
    """A line of sessions.jsonl; one that a kill has cut short counts for nothing."""
    try:
        told = json.loads(line)
        return {"images": int(told["images"]), "seconds": float(told["seconds"])}
    except (ValueError, KeyError, TypeError):
        return {"images": 0, "seconds": 0.0}


def read_record(path: Path) -> dict[str, Any]:
    """An image's record in ``trajectories/``.

    Raises:
        ValueError: it can't be read; drawing its image again mends that.
    """
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        record["turns"][0]["seconds"], record["turns"][0]["tokens"]
        return record
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        raise ValueError(f"{path}: damaged; remove it, and irg bench run --resume draws its image again") from None


def _finished_requests(
    pipe: "IRGPipeline", info: RunInfo, todo: Sequence[Sample], batch: int
) -> Iterator[tuple[Sample, Trajectory]]:
    from irg.reasoning.events import Finished
    from irg.reasoning.settings import Settings

    texts, seeds = [one.prompt.text for one in todo], [one.seed(info.seed) for one in todo]
    with closing(pipe.stream(texts, seeds, Settings.from_dict(info.settings), batch)) as events:
        for event in events:
            if isinstance(event, Finished):
                yield todo[event.request], event.trajectory


def save(folder: Path, info: RunInfo, one: Sample, trajectory: Trajectory) -> None:
    """Write every turn's image, then the record that says that they are all there."""
    layout = LAYOUTS[info.benchmark]
    image = None
    for turn in range(1, turns_of(info) + 1):
        if turn <= len(trajectory.turns) and trajectory.turns[turn - 1].image is not None:
            image = trajectory.turns[turn - 1].image
        assert image is not None, "every program draws in its first turn"
        layout.write(folder / "turns" / str(turn), one.prompt, one.number, info.model_name, image)
    assert image is not None
    layout.write(folder / "images", one.prompt, one.number, info.model_name, image)
    record = trajectory.to_dict() | {"prompt_id": one.prompt.id, "sample": one.number}
    path = trajectory_file(folder, one)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(record, ensure_ascii=False) + "\n")


def turns_of(info: RunInfo) -> int:
    """How many images a request of this run has at most; after an early stop the last one stands."""
    return 1 + int(info.settings["rounds"]) if info.mode == "irg" else 1


def fingerprint(folder: Path) -> str:
    """Which weights these are: a sha256 over each file's name, size, first and last MiB (a whole 7B takes minutes)."""
    told = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*.json")):
        size = path.stat().st_size
        told.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            told.update(file.read(_CHUNK))
            file.seek(max(0, size - _CHUNK))
            told.update(file.read())
    return told.hexdigest()


def versions() -> dict[str, str]:
    """Of what numbers depend on."""
    return {"irg": __version__} | {name: version(name) for name in ("torch", "numpy", "pillow")}


def default_folder(benchmark: str, model: str, mode: Mode) -> Path:
    """irg-bench/geneval-mini-irg."""
    return Path("irg-bench") / f"{benchmark}-{safe_name(model)}-{mode}"


def lock(file: TextIO, refusal: str) -> None:
    """Keep a file to this process until it is closed (where the system can): two at work would do everything twice.

    Raises:
        ValueError: another process has it.
    """
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(refusal) from None
    except OSError:  # a file system without locks
        return


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is whole or not there."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def progress(console: Console) -> Progress:
    """A bar with counts, elapsed and remaining time."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
        console=console,
    )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
