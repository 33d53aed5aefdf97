"""Requests: what a prompt asks for, in GenEval's own metadata format, and random ones for training and testing."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from irg.miniworld.backgrounds import BACKGROUNDS
from irg.miniworld.classes import COLORLESS_CLASSES, COLORS, check_color, classes

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
"""GenEval's six; the world has one more, `compound`, for prompts such as 'three red apples left of a bus'."""
ALL_TAGS = (*TAGS, "compound")
RELATIONS = ("left of", "right of", "above", "below")
DEFAULT_WEIGHTS: dict[str, float] = {
    "single_object": 1.0,
    "two_object": 1.5,
    "counting": 2.5,
    "colors": 1.0,
    "position": 1.5,
    "color_attr": 2.5,
    "compound": 2.0,
}
HELD_OUT_SHARE = 0.1


@dataclass(frozen=True)
class Include:
    """So many things of a class, perhaps in a colour, perhaps in a relation to an earlier entry."""

    name: str
    count: int = 1
    color: str | None = None
    position: tuple[str, int] | None = None

    def __post_init__(self) -> None:
        check_color(self.color)
        if self.count < 1:
            raise ValueError(f"count of {self.name!r} must be at least 1, not {self.count}")
        if self.position is not None and self.position[0] not in RELATIONS:
            raise ValueError(f"unknown relation {self.position[0]!r}; choose from {', '.join(RELATIONS)}")


@dataclass(frozen=True)
class Request:
    """A prompt's meaning. `exclude` is (class, count) pairs: so many of the class are too many."""

    tag: str
    include: tuple[Include, ...]
    exclude: tuple[tuple[str, int], ...] = ()
    background: str | None = field(default=None)

    def __post_init__(self) -> None:
        if not self.include:
            raise ValueError("a request must include at least one thing")
        for index, entry in enumerate(self.include):
            if entry.position is not None and not 0 <= entry.position[1] < index:
                raise ValueError(f"include[{index}] refers to include[{entry.position[1]}], which is not before it")

    def mentioned(self) -> list[int]:
        """Indices into `include` in the order in which the prompt names them ('a dog right of a tie': dog first)."""
        order: list[int] = []
        for index, entry in enumerate(self.include):
            if entry.position is not None and entry.position[1] in order:
                order.insert(order.index(entry.position[1]), index)
            else:
                order.append(index)
        return order

    def to_json(self) -> dict[str, Any]:
        """GenEval's metadata line without its prompt (plus `background` where one is asked)."""
        include = []
        for entry in self.include:
            item: dict[str, Any] = {"class": entry.name, "count": entry.count}
            if entry.color is not None:
                item["color"] = entry.color
            if entry.position is not None:
                item["position"] = list(entry.position)
            include.append(item)
        data: dict[str, Any] = {"tag": self.tag, "include": include}
        if self.exclude:
            data["exclude"] = [{"class": name, "count": count} for name, count in self.exclude]
        if self.background is not None:
            data["background"] = self.background
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Request:
        """The request of a GenEval metadata line (its `prompt` is ignored); ValueError if a field is missing."""
        try:
            include = tuple(
                Include(
                    name=item["class"],
                    count=item.get("count", 1),
                    color=item.get("color"),
                    position=(item["position"][0], item["position"][1]) if "position" in item else None,
                )
                for item in data["include"]
            )
            exclude = tuple((item["class"], item["count"]) for item in data.get("exclude", ()))
            return cls(data["tag"], include, exclude, data.get("background"))
        except KeyError as error:
            raise ValueError(f"request without field {error}: {dict(data)!r}") from None


def make_request(include: Sequence[Include], background: str | None = None) -> Request:
    """A request with the tag GenEval would give it, and an exclude for every count above one."""
    include = tuple(include)
    exclude = tuple((entry.name, entry.count + 1) for entry in include if entry.count > 1)
    return Request(_tag(include), include, exclude, background)


def _tag(include: tuple[Include, ...]) -> str:
    counts = [entry.count for entry in include]
    colored = [entry.color is not None for entry in include]
    placed = [entry.position is not None for entry in include]
    if len(include) == 1:
        if counts[0] == 1:
            return "colors" if colored[0] else "single_object"
        return "compound" if colored[0] else "counting"
    if len(include) == 2 and counts == [1, 1]:
        if not any(colored):
            return "position" if any(placed) else "two_object"
        if all(colored) and not any(placed):
            return "color_attr"
    return "compound"


def sample_request(
    rng: np.random.Generator,
    weights: Mapping[str, float] | None = None,
    vocab: Sequence[str] | None = None,
    *,
    split: str = "train",
    background: float = 0.0,
) -> Request:
    """A random request whose tag follows `weights` and whose classes come from `vocab` (default: all).

    split 'train' never gives a held-out combination; 'test' gives only requests with one (single objects have none).
    `background` is the chance that the request names one.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', not {split!r}")
    weights = DEFAULT_WEIGHTS if weights is None else weights
    if unknown := set(weights) - set(ALL_TAGS):
        raise ValueError(f"unknown tags: {', '.join(sorted(unknown))}; choose from {', '.join(ALL_TAGS)}")
    names = list(classes()) if vocab is None else list(vocab)
    chances = np.array(list(weights.values()), float)
    tag = list(weights)[int(rng.choice(len(weights), p=chances / chances.sum()))]
    for _ in range(10_000):
        include = _INCLUDES[tag](rng, names)
        request = make_request(include)
        if tag == "single_object" or held_out(request) == (split == "test"):
            break
    else:
        raise ValueError(f"vocab of {len(names)} classes gives no {split} request of tag {tag!r}")
    if background and rng.random() < background:
        return make_request(include, list(BACKGROUNDS)[int(rng.integers(len(BACKGROUNDS)))])
    return request


def _names(rng: np.random.Generator, names: list[str], count: int, colored: bool = False) -> list[str]:
    pool = [name for name in names if name not in COLORLESS_CLASSES] if colored else names
    if len(pool) < count:
        raise ValueError(f"vocab must have at least {count} classes, it has {len(pool)}")
    return [pool[int(i)] for i in rng.choice(len(pool), count, replace=False)]


def _color(rng: np.random.Generator) -> str:
    return COLORS[int(rng.integers(len(COLORS)))]


def _relation(rng: np.random.Generator) -> str:
    return RELATIONS[int(rng.integers(len(RELATIONS)))]


def _single(rng: np.random.Generator, names: list[str]) -> list[Include]:
    return [Include(_names(rng, names, 1)[0])]


def _two(rng: np.random.Generator, names: list[str]) -> list[Include]:
    return [Include(name) for name in _names(rng, names, 2)]


def _counting(rng: np.random.Generator, names: list[str]) -> list[Include]:
    return [Include(_names(rng, names, 1)[0], int(rng.integers(2, 5)))]


def _colors(rng: np.random.Generator, names: list[str]) -> list[Include]:
    return [Include(_names(rng, names, 1, colored=True)[0], color=_color(rng))]


def _position(rng: np.random.Generator, names: list[str]) -> list[Include]:
    first, second = _names(rng, names, 2)
    return [Include(first), Include(second, position=(_relation(rng), 0))]


def _color_attr(rng: np.random.Generator, names: list[str]) -> list[Include]:
    first, second = _names(rng, names, 2, colored=True)
    color_a, color_b = (COLORS[int(i)] for i in rng.choice(len(COLORS), 2, replace=False))
    return [Include(first, color=color_a), Include(second, color=color_b)]


def _compound(rng: np.random.Generator, names: list[str]) -> list[Include]:
    """Counts, colours and relations together, at most five things; never one of GenEval's plain forms."""
    form = rng.random()
    if form < 0.15:
        name = _names(rng, names, 1, colored=True)[0]
        return [Include(name, int(rng.integers(2, 5)), _color(rng))]
    if form < 0.3:
        three = _names(rng, names, 3)
        return [Include(name, color=_maybe_color(rng, name, 0.3)) for name in three]
    while True:
        first, second = _names(rng, names, 2)
        counts = [int(rng.choice(4, p=[0.5, 0.25, 0.15, 0.1])) + 1 for _ in range(2)]
        position = (_relation(rng), 0) if form < 0.75 else None
        include = [
            Include(first, counts[0], _maybe_color(rng, first, 0.5)),
            Include(second, counts[1], _maybe_color(rng, second, 0.5), position),
        ]
        if sum(counts) <= 5 and _tag(tuple(include)) == "compound":
            return include


def _maybe_color(rng: np.random.Generator, name: str, chance: float) -> str | None:
    return _color(rng) if name not in COLORLESS_CLASSES and rng.random() < chance else None


_INCLUDES = {
    "single_object": _single,
    "two_object": _two,
    "counting": _counting,
    "colors": _colors,
    "position": _position,
    "color_attr": _color_attr,
    "compound": _compound,
}


def held_out(request: Request) -> bool:
    """Whether training must never see this request: a fixed tenth of all object pairs, coloured and counted objects."""
    combinations = []
    for index, entry in enumerate(request.include):
        if entry.color is not None:
            combinations.append(f"{entry.color} {entry.name}")
        if entry.count > 1:
            combinations.append(f"{entry.count} {entry.name}")
        for other in request.include[:index]:
            combinations.append(" and ".join(sorted((entry.name, other.name))))
    return any(_is_held_out(combination) for combination in combinations)


@lru_cache(maxsize=65536)
def _is_held_out(combination: str) -> bool:
    digest = hashlib.blake2b(combination.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") < HELD_OUT_SHARE * 2**32
