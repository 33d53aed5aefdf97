"""Where a run's numbers and images go: ``log.jsonl``, and TensorBoard, trackio or Weights & Biases if asked."""

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image


class Tracker(Protocol):
    """Takes a step's numbers and images."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def image(self, step: int, name: str, image: Image.Image) -> None: ...

    def close(self) -> None: ...


class LogFile:
    """``log.jsonl``: one JSON object a line, null for what is no number (NaN).

    It is opened for every line, so that a full disk costs that line alone; ``irg.files.JsonLines`` would try again."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append a line."""
        line = {"step": step, **values}
        text = json.dumps({k: round(v, 6) if math.isfinite(v) else None for k, v in line.items()})
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text + "\n")
        except OSError as error:
            warnings.warn(f"cannot write {self.path} ({error}): {text}", stacklevel=2)

    def image(self, step: int, name: str, image: Image.Image) -> None:
        """Images are files of their own."""

    def close(self) -> None:
        """Nothing is held open."""


class TensorBoard:
    """Event files in ``out/tensorboard``."""

    def __init__(self, out: Path, config: Mapping[str, Any]) -> None:
        module = _needed("torch.utils.tensorboard", "tensorboard")
        self.writer = module.SummaryWriter(str(out / "tensorboard"))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One scalar a value."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def image(self, step: int, name: str, image: Image.Image) -> None:
        """One image."""
        self.writer.add_image(name, np.asarray(image), step, dataformats="HWC")

    def close(self) -> None:
        """Flush."""
        self.writer.close()


class Board:
    """trackio and Weights & Biases, which share their interface."""

    def __init__(self, library: str, out: Path, config: Mapping[str, Any]) -> None:
        self.module = _needed(library, library)
        options: dict[str, Any] = {"dir": str(out)} if library == "wandb" else {}
        self.run = self.module.init(project="irg", name=out.name, config=dict(config), **options)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """All values of a step."""
        self.module.log(dict(values), step=step)

    def image(self, step: int, name: str, image: Image.Image) -> None:
        """One image."""
        self.module.log({name: self.module.Image(image)}, step=step)

    def close(self) -> None:
        """End the run."""
        self.module.finish()


def _needed(module: str, package: str) -> Any:
    try:
        return import_module(module)
    except ImportError:
        extra = "train" if package == "tensorboard" else package
        raise ValueError(f"trackers: {package} is not installed: pip install 'irg[{extra}]'") from None


def check(names: Sequence[str]) -> None:
    """Raise ValueError if a tracker's library is missing."""
    for name in names:
        _needed("torch.utils.tensorboard" if name == "tensorboard" else name, name)


class Trackers:
    """All trackers of a run as one; silent on every process but the main one."""

    def __init__(self, out: Path, names: Sequence[str], config: Mapping[str, Any], main: bool = True) -> None:
        self.all: list[Tracker] = []
        self._stack = ExitStack()
        if main:
            self._add(LogFile(out / "log.jsonl"))
            for name in names:
                self._add(TensorBoard(out, config) if name == "tensorboard" else Board(name, out, config))

    def _add(self, tracker: Tracker) -> None:
        self.all.append(tracker)
        self._stack.callback(tracker.close)

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send a step's numbers everywhere."""
        for tracker in self.all:
            tracker.log(step, values)

    def image(self, step: int, name: str, image: Image.Image) -> None:
        """Send an image everywhere."""
        for tracker in self.all:
            tracker.image(step, name, image)
