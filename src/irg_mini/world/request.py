"""Requests: what a prompt asks for, in GenEval's own metadata format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from irg_mini.world.classes import check_color
from irg_mini.world.vocabularies import ALL_RELATIONS, RELATIONS

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
"""GenEval's six; the world has one more, `compound`, for prompts such as 'three red apples left of a bus'."""
ALL_TAGS = (*TAGS, "compound")
FULL_TAGS = (*ALL_TAGS, "stacking")
"""Beyond irg-mini v1's vocabulary: two plain things, one on or behind the other."""


@dataclass(frozen=True)
class Include:
    """So many things of a class, perhaps in a color, perhaps in a relation to an earlier entry.

    `unknown` is the prompt's own word where the world does not know it; `name` is then the nearest class it knows.
    """

    name: str
    count: int = 1
    color: str | None = None
    position: tuple[str, int] | None = None
    unknown: str | None = None

    def __post_init__(self) -> None:
        check_color(self.color)
        if self.count < 1:
            raise ValueError(f"count of {self.name!r} must be at least 1, not {self.count}")
        if self.position is not None and self.position[0] not in ALL_RELATIONS:
            raise ValueError(f"unknown relation {self.position[0]!r}; choose from {', '.join(ALL_RELATIONS)}")


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
        """GenEval's metadata line without its prompt (plus `background` and `unknown` where there is one)."""
        include = []
        for entry in self.include:
            item: dict[str, Any] = {"class": entry.name, "count": entry.count}
            if entry.color is not None:
                item["color"] = entry.color
            if entry.position is not None:
                item["position"] = list(entry.position)
            if entry.unknown is not None:
                item["unknown"] = entry.unknown
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
                    unknown=item.get("unknown"),
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
    return Request(find_tag(include), include, exclude, background)


def find_tag(include: Sequence[Include]) -> str:
    """The tag that GenEval would give it, else 'stacking' or 'compound'."""
    counts = [entry.count for entry in include]
    colored = [entry.color is not None for entry in include]
    if len(include) == 1:
        if counts[0] == 1:
            return "colors" if colored[0] else "single_object"
        return "compound" if colored[0] else "counting"
    if len(include) == 2 and counts == [1, 1]:
        if not any(colored):
            relations = {entry.position[0] for entry in include if entry.position is not None}
            return "two_object" if not relations else "position" if relations <= set(RELATIONS) else "stacking"
        if all(colored) and all(entry.position is None for entry in include):
            return "color_attr"
    return "compound"
