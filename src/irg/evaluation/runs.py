"""A run's folder: its record, which images it needs, and which of them are finished.

RUN/run.json                 prompts, model and settings: everything that must not change
RUN/sessions.jsonl           images, seconds and how the model was held, by session of ``irg bench run``
RUN/images/                  the final images, laid out as the official scripts want them
RUN/turns/1/, turns/2/ ...   the image after each turn, laid out the same way
RUN/trajectories/ID/0.json   thinking, settings, times of a prompt's first image; written last, so that an
                             image without it is drawn again
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from irg import files
from irg.evaluation.image_folders import LAYOUTS, slug
from irg.promptsets import BenchPrompt, PromptSet
from irg.text_files import parse_json, read_text
from irg.version import __version__

SCHEMA = 1
RUN_FILE, SESSIONS_FILE = "run.json", "sessions.jsonl"


@dataclass(frozen=True)
class RunInfo:
    """The content of ``run.json``."""

    benchmark: str
    variant: str
    prompts_sha256: str
    prompts_source: str
    official_prompts: bool
    license: str
    prompt_ids: tuple[str, ...]
    prompts_in_set: int
    covered_by: str | None
    """The judge whose vocabulary the prompts were selected by; prompts that it does not cover were not drawn."""
    covered: int
    """How many prompts of the set that vocabulary covers (all of them without one)."""
    samples: int
    model: str
    model_fingerprint: str
    model_name: str
    """The model's folder name in official layouts."""
    mode: str
    settings: dict[str, Any]
    seed: int
    weights: str = ""
    """The set of weights that was loaded, such as ``ema``; empty in records of earlier versions."""
    lora: tuple[str, ...] = ()
    """The adapters that were added, ``PATH:SCALE``."""
    protocol: str = ""
    """The way to reason; empty in records of earlier versions."""
    protocol_reason: str = ""
    """Why it is this one."""
    system_prompt: str = ""
    """One's own, in the place of the protocol's."""
    precision: str = ""
    """float32, bf16, int8, int4 or fp8."""
    irg_version: str = __version__
    schema: int = SCHEMA

    @property
    def max_turns(self) -> int:
        """How many images a request of this run has at most; after an early stop the last one is the final one."""
        return 1 + int(self.settings["rounds"]) if self.mode == "irg" else 1

    def save(self, folder: Path) -> None:
        files.write_json(folder / RUN_FILE, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> "RunInfo":
        """Read ``run.json``.

        Raises:
            ValueError: it is missing or not what it should be.
        """
        path = folder / RUN_FILE
        try:
            data = parse_json(read_text(path))
            if data.get("schema") != SCHEMA:
                raise ValueError(f"schema {data.get('schema')} is not known to this irg ({__version__})")
            return cls(**{**data, "prompt_ids": tuple(data["prompt_ids"]), "lora": tuple(data.get("lora", ()))})
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ValueError(f"{path}: not the record of a benchmark run: {reason}") from error


@dataclass(frozen=True)
class Sample:
    """One image to draw: sample ``number`` of a prompt."""

    prompt: BenchPrompt
    number: int

    def seed(self, base: int) -> int:
        """32 bits of a hash of the run's seed, the prompt's id and the number: independent of what else is drawn."""
        key = f"{base}/{self.prompt.id}/{self.number}".encode()
        return int.from_bytes(hashlib.sha256(key).digest()[:4], "big")

    def trajectory_file(self, run: Path) -> Path:
        """Path of the image's trajectory in a run's folder."""
        return run / "trajectories" / self.prompt.id / f"{self.number}.json"


def select_prompts(prompts: Sequence[BenchPrompt], limit: int | None) -> tuple[BenchPrompt, ...]:
    """The first prompts of each tag, at most ``limit`` in all, as evenly as possible; in the set's order.

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


def new_run(prompt_set: PromptSet, selected: Sequence[BenchPrompt], samples: int | None, **fields: Any) -> RunInfo:
    """The record of a run that is about to start.

    Args:
        samples: images a prompt; None: as many as the protocol asks for.
        fields: :class:`RunInfo`'s other fields.

    Raises:
        ValueError: the layout has no place for so many samples.
    """
    layout = LAYOUTS[prompt_set.name]
    samples = layout.samples if samples is None else samples
    if not 1 <= samples <= layout.max_samples:
        allowed = "one image" if layout.max_samples == 1 else f"1 to {layout.max_samples} images"
        raise ValueError(f"{prompt_set.name} takes {allowed} a prompt, got --num-images {samples}")
    return RunInfo(
        benchmark=prompt_set.name,
        variant=prompt_set.variant,
        prompts_sha256=prompt_set.sha256,
        prompts_source=prompt_set.source,
        official_prompts=prompt_set.official,
        license=prompt_set.license,
        prompt_ids=tuple(prompt.id for prompt in selected),
        prompts_in_set=len(prompt_set),
        samples=samples,
        **fields,
    )


def check_folder(folder: Path, resume: bool) -> bool:
    """Whether a run is in a folder that one may go on in; otherwise one may begin there.

    Raises:
        FileExistsError: there is a run (and ``resume`` is off), or something else.
    """
    if (folder / RUN_FILE).is_file():
        if not resume:
            raise FileExistsError(f"{folder}: contains a run; give --resume to continue it, or another --out")
        return True
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder}: is a file, a folder is needed")
    if folder.exists() and any(map(_is_content, folder.iterdir())):
        raise FileExistsError(f"{folder}: is not empty and contains no run; give another --out")
    return False


def open_run(folder: Path, info: RunInfo, resume: bool) -> None:
    """Start a run's folder, or check that the run in it is this one.

    Raises:
        FileExistsError: see :func:`check_folder`.
        ValueError: the run there differs; the field is named.
    """
    if check_folder(folder, resume):
        before = RunInfo.load(folder)
        same = replace(before, irg_version=info.irg_version, prompts_source=info.prompts_source)
        same = replace(same, weights=before.weights or info.weights, precision=before.precision or info.precision)
        same = replace(same, protocol=before.protocol or info.protocol, protocol_reason=info.protocol_reason)
        grown = set(before.prompt_ids) < set(info.prompt_ids)  # a higher --limit, or none
        if grown:
            same = replace(same, prompt_ids=info.prompt_ids)
        new = asdict(info)
        for name in ("protocol", *new):  # the protocol first: other settings follow from it
            if asdict(same)[name] != (value := new[name]):
                raise ValueError(
                    f"{folder}: can't resume, {name} was {_short(asdict(same)[name])} and is {_short(value)}; "
                    "give another --out"
                )
        if grown:
            info.save(folder)
        return
    folder.mkdir(parents=True, exist_ok=True)
    info.save(folder)


def _is_content(path: Path) -> bool:
    """Whether it is more than what a kill has left of an unwritten file."""
    return not path.name.startswith(files.TEMPORARY)


def missing_samples(folder: Path, info: RunInfo, prompts: Sequence[BenchPrompt]) -> list[Sample]:
    """The images of a run that are not finished."""
    samples = [Sample(prompt, number) for prompt in prompts for number in range(info.samples)]
    return [one for one in samples if not _finished(folder, info, one)]


def _finished(folder: Path, info: RunInfo, one: Sample) -> bool:
    image = folder / "images" / LAYOUTS[info.benchmark].place(one.prompt, one.number, info.model_name)
    return one.trajectory_file(folder).is_file() and image.is_file()


def record_session(folder: Path, images: int, seconds: float, batch: int, loaded: Mapping[str, Any]) -> None:
    """Add a line to ``sessions.jsonl``; ``loaded``: :mod:`irg.model.placement.record`."""
    with files.JsonLines(folder / SESSIONS_FILE) as sessions:
        sessions.append({"images": images, "seconds": round(seconds, 3), "batch": batch, "loaded": dict(loaded)})


def changed_since(folder: Path, loaded: Mapping[str, Any]) -> list[str]:
    """In what the model is held otherwise than in the run's last session, in words; it does not forbid to go on."""
    sessions = files.read_json_lines(folder / SESSIONS_FILE)
    before = sessions[-1].get("loaded", {}) if sessions else {}
    names = [name for name in ("memory", "dtype", "device", "parallel", "versions") if name in before]
    return [f"{name} was {before[name]} and is {loaded[name]}" for name in names if before[name] != loaded.get(name)]


def seconds_per_request(folder: Path) -> float | None:
    """Wall-clock time of a whole request (all its turns), requests running together; None before any was drawn."""
    sessions = files.read_json_lines(folder / SESSIONS_FILE)
    images = sum(session["images"] for session in sessions)
    return sum(session["seconds"] for session in sessions) / images if images else None


def read_trajectory(path: Path) -> dict[str, Any]:
    """An image's trajectory, as plain data.

    Raises:
        ValueError: it can't be read.
    """
    try:
        record: dict[str, Any] = parse_json(read_text(path))
        record["turns"][0]["seconds"], record["turns"][0]["tokens"]
        return record
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        raise ValueError(f"{path}: damaged; remove it, and irg bench run --resume draws its image again") from None


def default_folder(benchmark: str, model: str, mode: str) -> Path:
    """irg-bench/geneval-mini-irg."""
    return Path("irg-bench") / f"{benchmark}-{slug(model)}-{mode}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
