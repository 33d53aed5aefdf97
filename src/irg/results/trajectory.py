"""A finished request: all texts, all images, how they were made; saved to a folder and loaded back unchanged."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from irg.results.folder import JSON_NAME, REPORT_NAME, encode_png, image_name, read_image, write_folder
from irg.results.report import render_report
from irg.results.search import Candidate, Search, best_image, candidate_name
from irg.text_files import parse_json
from irg.version import __version__

SCHEMA_VERSION = 1


@dataclass
class Turn:
    """One round of the loop: a text (none in mode ``direct``), then an image (none when nothing was left to improve).

    Attributes:
        thinking: what the model wrote before drawing: its thinking in turn 0, a reflection in later turns.
        reflection: what was written of the image before, where ``thinking`` is a new thinking (``revise: thinking``).
        settings: how the image was drawn, as plain JSON values.
        seconds: time per stage, such as ``{"thinking": 0.4, "drawing": 2.1}``.
        tokens: length of the texts.
        critic: who reflected in the model's place, as plain JSON values; None: nobody. A verdict has ``name``,
            ``wrong``, ``change``, ``done``, ``score`` (0 to 1), ``cost`` and ``cached``; a critic that failed has
            ``name``, ``failed`` (the kind of failure), ``error`` and ``fallback`` (what was done instead: ``self``, the
            model reflected, or ``keep``, the image stays).
        details: what else was written, read or decided in this turn, as plain JSON values.
        given: the image was given, not drawn.
    """

    thinking: str | None
    image: Image.Image | None
    settings: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    tokens: int = 0
    critic: dict[str, Any] | None = None
    details: dict[str, Any] = field(default_factory=dict)
    given: bool = False
    reflection: str | None = None

    @property
    def texts(self) -> list[str]:
        """All that was written in this turn, in order."""
        return [text for text in (self.reflection, self.thinking) if text]


@dataclass
class Trajectory:
    """All turns of a request.

    Attributes:
        stopped: the last text led to no image.
        stop_reason: why (``done``: the model saw nothing left to improve); empty where the rounds were up.
        loaded: what was loaded of the model, and how: fingerprint, weights, precision, memory mode, adapters, device,
            versions of libraries.
        best: index of the turn whose image was kept, by its score; None: the last image stands.
        search: what else was tried, where several candidates or rounds were judged.
        notes: what the model can't do with the prompt, a line each.
    """

    prompt: str
    mode: str
    seed: int
    model: str
    settings: dict[str, Any]
    turns: list[Turn]
    stopped: bool = False
    version: str = __version__
    protocol: str = "irg"
    stop_reason: str = ""
    loaded: dict[str, Any] = field(default_factory=dict)
    best: int | None = None
    search: Search | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def image(self) -> Image.Image | None:
        """The image that was kept: the last one, or the best."""
        if self.best is not None:
            return self.turns[self.best].image
        return self.images[-1] if self.images else None

    @property
    def images(self) -> list[Image.Image]:
        """All images of the turns, in order."""
        return [turn.image for turn in self.turns if turn.image is not None]

    def image_after(self, edits: int) -> Image.Image | None:
        """What stands after at most so many edits: the last image until then or, where the best is kept, the best."""
        images = self.images[: edits + 1]
        if self.best is None or self.search is None or not images:
            return images[-1] if images else None
        scores = self.search.candidates[self.search.chosen].scores[: edits + 1]
        return images[best_image(scores)]

    @property
    def initial_image(self) -> Image.Image | None:
        """The first turn's image."""
        return self.turns[0].image if self.turns else None

    @property
    def thinking(self) -> str | None:
        """What was written before the first image; None where that was given and improved."""
        if self.mode == "edit":
            return self.turns[-1].thinking if self.turns else None
        return self.turns[0].thinking if self.turns else None

    @property
    def reflection(self) -> str | None:
        """The last turn's text, if it was written about an image of this trajectory."""
        if len(self.turns) < 2 or self.mode in ("edit", "ask"):
            return None
        last = self.turns[-1]
        return last.thinking if last.reflection is None else last.reflection

    @property
    def answer(self) -> str | None:
        """The answer to a question about images."""
        return self.turns[-1].thinking if self.mode == "ask" and self.turns else None

    @property
    def seconds(self) -> float:
        """Time of all stages of all turns."""
        return sum(sum(turn.seconds.values()) for turn in self.turns)

    @property
    def tokens(self) -> int:
        """Length of all texts."""
        return sum(turn.tokens for turn in self.turns)

    @property
    def cost(self) -> float:
        """What the critics' verdicts cost, whenever they were paid for."""
        return sum(turn.critic.get("cost", 0.0) for turn in self.turns if turn.critic is not None)

    def image_names(self) -> list[str | None]:
        """For each turn, the file its image is saved to."""
        given = sum(turn.given for turn in self.turns)
        return [None if turn.image is None else image_name(index, given) for index, turn in enumerate(self.turns)]

    def to_dict(self) -> dict[str, Any]:
        """What ``trajectory.json`` holds: everything but the pixels."""
        turns = [
            {
                "thinking": turn.thinking,
                "image": name,
                "settings": turn.settings,
                "seconds": turn.seconds,
                "tokens": turn.tokens,
                "details": turn.details,
                "given": turn.given,
            }
            | ({} if turn.critic is None else {"critic": turn.critic})
            | ({} if turn.reflection is None else {"reflection": turn.reflection})
            for turn, name in zip(self.turns, self.image_names(), strict=True)
        ]
        more: dict[str, Any] = {"notes": self.notes} if self.notes else {}
        more |= {} if self.search is None else {"best": self.best, "search": self.search.to_dict()}
        return {
            "schema_version": SCHEMA_VERSION,
            "irg_version": self.version,
            "prompt": self.prompt,
            "mode": self.mode,
            "seed": self.seed,
            "model": self.model,
            "loaded": self.loaded,
            "protocol": self.protocol,
            "stopped": self.stopped,
            "stop_reason": self.stop_reason,
            "settings": self.settings,
            "turns": turns,
        } | more

    def save(self, folder: str | Path, overwrite: bool = False) -> Path:
        """Write images, ``trajectory.json`` and ``report.html`` to ``folder``, wholly or not at all.

        The folder must be new or empty. With ``overwrite`` it may hold an earlier trajectory, which is replaced; a
        folder with any other file in it is always refused, so nothing foreign is ever deleted.

        Raises:
            FileExistsError: ``folder`` is a file or holds something else.
            ValueError: the trajectory holds something that can't be saved unchanged.
            OSError: writing failed; then ``folder`` is as it was before.
        """
        return write_folder(Path(folder), self._files(), overwrite)

    @classmethod
    def load(cls, folder: str | Path) -> "Trajectory":
        """Read back what :meth:`save` wrote.

        Raises:
            ValueError: a file is missing, unreadable or not what it should be; file and problem are named.
        """
        folder = Path(folder).expanduser()
        path = folder / JSON_NAME
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror or error}") from error
        try:
            data = parse_json(content)
        except ValueError as error:
            raise ValueError(f"{path}: not valid JSON: {error}") from error
        try:
            return cls._from_dict(data, lambda name: read_image(folder, name))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def _files(self) -> dict[str, bytes]:
        """Name -> content.

        Raises:
            ValueError: something can't be saved unchanged.
        """
        data = self.to_dict()
        try:
            encoded = (json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"the trajectory can't be written as JSON: {error}") from error
        files: dict[str, bytes] = {}
        for index, (turn, name) in enumerate(zip(self.turns, self.image_names(), strict=True)):
            if turn.image is not None and name is not None:
                try:
                    files[name] = encode_png(turn.image, self._png_details(index))
                except ValueError as error:
                    raise ValueError(f"turn {index}: {error}") from error
        candidates = [one.image for one in self.search.candidates] if self.search else []
        for index, image in enumerate(candidates):
            if image is not None:
                details = self._png_details(0) | {"turn": None, "thinking": None, "settings": {}}
                files[candidate_name(index)] = encode_png(image, details)
        report = render_report(data, [turn.image for turn in self.turns], candidates)
        return files | {REPORT_NAME: report.encode("utf-8"), JSON_NAME: encoded}

    def _png_details(self, index: int) -> dict[str, Any]:
        turn = self.turns[index]
        size = None if turn.image is None else f"{turn.image.width}x{turn.image.height}"
        shared = {name: value for name, value in self.to_dict().items() if name not in ("turns", "settings", "stopped")}
        own = {"size": size, "thinking": turn.thinking, "settings": turn.settings, "request_settings": self.settings}
        return shared | {"turn": index} | own

    @classmethod
    def _from_dict(cls, data: Any, read: Callable[[str], Image.Image]) -> "Trajectory":
        version = _get(data, "schema_version", int, "")
        if version != SCHEMA_VERSION:
            raise ValueError(f"schema_version {version} is not known to this irg ({__version__}), which reads 1")
        turns = []
        for index, entry in enumerate(_get(data, "turns", list, "")):
            where = f"turns[{index}]."
            name = _get(entry, "image", (str, type(None)), where)
            turns.append(
                Turn(
                    thinking=_get(entry, "thinking", (str, type(None)), where),
                    image=None if name is None else read(name),
                    settings=_get(entry, "settings", dict, where),
                    seconds=_seconds(_get(entry, "seconds", dict, where), where),
                    tokens=_get(entry, "tokens", int, where),
                    critic=_critic(entry["critic"], where) if "critic" in entry else None,
                    details=_get({"details": {}} | entry, "details", dict, where),
                    given=_get({"given": False} | entry, "given", bool, where),
                    reflection=_get({"reflection": None} | entry, "reflection", (str, type(None)), where),
                )
            )
        return cls(
            prompt=_get(data, "prompt", str, ""),
            mode=_get(data, "mode", str, ""),
            seed=_get(data, "seed", int, ""),
            model=_get(data, "model", str, ""),
            settings=_get(data, "settings", dict, ""),
            turns=turns,
            stopped=_get(data, "stopped", bool, ""),
            version=_get(data, "irg_version", str, ""),
            protocol=_get({"protocol": "irg"} | data, "protocol", str, ""),
            stop_reason=_get({"stop_reason": ""} | data, "stop_reason", str, ""),
            loaded=_get({"loaded": {}} | data, "loaded", dict, ""),
            notes=_get({"notes": []} | data, "notes", list, ""),
            **_search(data, turns, read),
        )


def _search(data: dict[str, Any], turns: list[Turn], read: Callable[[str], Image.Image]) -> dict[str, Any]:
    """``best`` and ``search``, where they are there."""
    if "search" not in data:
        return {}
    search, best = _get(data, "search", dict, ""), _get(data, "best", (int, type(None)), "")
    if best is not None and not (0 <= best < len(turns) and turns[best].image is not None):
        raise ValueError(f"best must be the index of a turn with an image, got {best}")
    candidates = []
    for index, entry in enumerate(_get(search, "candidates", list, "search.")):
        where = f"search.candidates[{index}]."
        name, scores = _get(entry, "image", (str, type(None)), where), _get(entry, "scores", list, where)
        if any(type(score) not in (int, float, type(None)) for score in scores):
            raise ValueError(f"{where}scores must be numbers or null, got {str(scores)[:40]}")
        image = None if name is None else read(name)
        candidates.append(Candidate(_get(entry, "seed", int, where), scores, image))
    chosen = _get(search, "chosen", int, "search.")
    if not 0 <= chosen < len(candidates):
        raise ValueError(f"search.chosen must be the index of a candidate, got {chosen}")
    texts = {name: _get(search, name, str, "search.") for name in ("select", "why")}
    return {
        "best": best,
        "search": Search(texts["select"], candidates, chosen, texts["why"], _get(search, "notes", list, "search.")),
    }


def _get(data: Any, name: str, kind: type | tuple[type, ...], where: str) -> Any:
    """``data[name]``, which must be of the given kind (a bool is no int here)."""
    if not isinstance(data, dict):
        raise ValueError(f"{where.rstrip('.') or 'the file'} must be a JSON object")
    if name not in data:
        raise ValueError(f"{where}{name} is missing")
    value = data[name]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        wanted = " or ".join("null" if one is type(None) else one.__name__ for one in kinds)
        raise ValueError(f"{where}{name} must be of type {wanted}, got {str(value)[:40]!r}")
    return value


def _critic(value: Any, where: str) -> dict[str, Any]:
    fields: dict[str, type | tuple[type, ...]] = {"name": str, "failed": str, "error": str, "fallback": str}
    if "failed" not in _get({"critic": value}, "critic", dict, where):
        fields = {"name": str, "wrong": str, "change": str, "done": bool, "score": (int, float), "cost": (int, float)}
    return value | {name: _get(value, name, kind, f"{where}critic.") for name, kind in fields.items()}


def _seconds(values: dict[str, Any], where: str) -> dict[str, float]:
    for name, value in values.items():
        if type(value) not in (int, float):
            raise ValueError(f"{where}seconds.{name} must be a number, got {str(value)[:40]!r}")
    return values
