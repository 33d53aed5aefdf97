"""What the mini world knows: its object classes, colors, sizes and the placing grid. Pure data and its look-ups.

A class is one line of a file in `nouns/` (and, if its image has something beside the object, one line of `_CUTS`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

GRID = 12
"""Things stand on the centers of a GRID x GRID lattice of cells."""

SIZES: dict[str, float] = {"small": 0.2, "medium": 0.28, "large": 0.38, "huge": 0.55}
"""Size word -> side of the square with the thing's box area, as a share of the image's side."""

LONGEST = 1.25
"""A thing's longer side is at most this many times its size (a spoon of its area's size would be very long)."""

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
Polygon = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class ObjectClass:
    """One kind of thing. `aspect` is width / height of its tight box; `natural` the one color it has, if any.

    `emoji` is None for what we draw ourselves; `synonyms` are further names that prompts may use.
    """

    name: str
    emoji: str | None
    aspect: float
    natural: str | None
    plural: str
    category: str
    synonyms: tuple[str, ...] = ()
    cut: Polygon | None = None


# The part of an emoji that is the thing itself, as a polygon in tenths of the emoji's square.
_CUTS: dict[str, Polygon] = {
    "tie": ((5, 2.85), (5.95, 3.4), (5.5, 4.1), (6.45, 8.4), (5, 9.35), (3.5, 8.4), (4.4, 4.1), (4.05, 3.4)),
    "baseball bat": ((0, 0), (10, 0), (10, 5), (6.7, 5.4), (4.9, 9.8), (0, 10)),
    "fork": ((0, 0), (5, 0), (5, 10), (0, 10)),
    "couch": ((0, 5), (7.9, 5), (7.9, 8.3), (7.6, 9.6), (0, 10)),
    "snowboard": (
        *((4.0, 0.7), (5.9, 0.7), (6.3, 0.4), (7.95, 0.4), (7.95, 1.25), (6.9, 1.3), (6.2, 2.4), (6.6, 3.4)),
        *((7.6, 3.9), (8.3, 4.0), (8.3, 4.8), (7.3, 4.7), (6.1, 4.2), (6.4, 5.3), (6.8, 5.8), (7.4, 5.9)),
        *((7.7, 6.6), (7.3, 7.3), (3.0, 9.0), (2.1, 8.8), (1.85, 8.0), (2.3, 7.2), (3.5, 6.8), (4.4, 5.6)),
        *((4.0, 4.9), (3.7, 4.8), (3.2, 4.9), (2.9, 5.2), (2.2, 5.1), (2.2, 4.3), (2.7, 3.3), (3.8, 2.9)),
        (3.8, 1.5),
    ),
}


def regular_plural(name: str) -> str:
    """'dogs', 'buses', 'benches', 'puppies', 'glasses of wine'."""
    head, of, rest = name.partition(" of ")
    if of:
        return regular_plural(head) + of + rest
    if name.endswith("y") and name[-2] not in "aeiou":
        return name[:-1] + "ies"
    return name + ("es" if name.endswith(("s", "sh", "ch", "x")) else "s")


def synonym_plural(kind: ObjectClass, synonym: str) -> str:
    """The plural of a class's synonym; trousers are trousers."""
    return synonym if kind.plural == kind.name and synonym.endswith("s") else regular_plural(synonym)


@cache
def _read(file: str) -> dict[str, ObjectClass]:
    """The classes of one file of nouns, by name, in the file's order."""
    table = {}
    for line in files("irg_mini.world").joinpath("nouns", f"{file}.txt").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        fields = [None if field.strip() == "-" else field.strip() for field in line.split("|")]
        name, emoji, aspect, natural, category, plural, synonyms = fields
        assert name is not None and aspect is not None and category is not None, line
        table[name] = ObjectClass(
            name=name,
            emoji=emoji,
            aspect=float(aspect),
            natural=natural,
            plural=plural or regular_plural(name),
            category=category,
            synonyms=tuple(word.strip() for word in synonyms.split(",")) if synonyms else (),
            cut=_CUTS.get(name),
        )
    return table


_FILES = {"core": ("core",), "geneval": ("core", "drawn"), "full": ("core", "drawn", "more")}


@cache
def classes(vocabulary: str = "core") -> dict[str, ObjectClass]:
    """The classes of a vocabulary, by name, in a fixed order.

    'core': the 67 that irg-mini v1 knows; 'geneval': GenEval's 80; 'full': all. Each one begins with the one before.
    ValueError for another name.
    """
    if vocabulary not in _FILES:
        raise ValueError(f"unknown vocabulary {vocabulary!r}; choose from {', '.join(_FILES)}")
    return {name: kind for file in _FILES[vocabulary] for name, kind in _read(file).items()}


def is_class(name: str) -> bool:
    """Whether the world can draw it, in whatever vocabulary."""
    return name in classes("full")


COLORLESS_CLASSES = frozenset(name for name, kind in classes("full").items() if kind.category == "person")
"""Classes that are never asked in a color: people (GenEval asks none for a person)."""


def takes_color(name: str) -> bool:
    """Whether prompts may ask for this class in a color."""
    return name not in COLORLESS_CLASSES


@cache
def _unsteady() -> frozenset[str]:
    text = files("irg_mini.world").joinpath("nouns", "unsteady.txt").read_text(encoding="utf-8")
    return frozenset(line for line in text.splitlines() if not line.startswith("#"))


def can_carry(name: str) -> bool:
    """Whether something that stands on this class's box seems to stand on it in the image."""
    return name not in _unsteady()


def object_class(name: str) -> ObjectClass:
    """The class called `name`, of whatever vocabulary; ValueError if the world has none."""
    try:
        return classes("full")[name]
    except KeyError:
        raise ValueError(f"the mini world has no object class {name!r}") from None


def sizes_down_from(size: str) -> list[str]:
    """This size and all smaller ones, the largest first."""
    return [word for word in reversed(SIZES) if SIZES[word] <= SIZES[size]]


def check_color(color: str | None) -> None:
    """ValueError unless `color` is None or one of `COLORS`."""
    if color is not None and color not in COLORS:
        raise ValueError(f"unknown color {color!r}; choose from {', '.join(COLORS)}")


def geneval_plural(name: str) -> str:
    """GenEval's own spelling of the plural: mechanical, hence 'benchs', 'knifes', 'persons', but 'buses'."""
    return name + ("es" if name.endswith("s") else "s")


def article(word: str) -> str:
    """'an apple', 'an hourglass', 'a unicorn'."""
    if word.startswith(("uni", "uku", "eu")):
        return "a"
    return "an" if word[0] in "aeiou" or word.startswith("hour") else "a"
