"""What the mini world knows: its object classes, colours, sizes and the placing grid. Pure data and its look-ups.

A new class is one line of `_CLASS_TABLE` (and, if its picture has something beside the object, one line of `_CUTS`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

GRID = 12
"""Things stand on the centres of a GRID x GRID lattice of cells."""

SIZES: dict[str, float] = {"small": 0.2, "medium": 0.28, "large": 0.38, "huge": 0.55}
"""Size word -> side of the square with the thing's box area, as a share of the picture's side."""

LONGEST = 1.25
"""A thing's longer side is at most this many times its size (a spoon of its area's size would be very long)."""

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
COLORLESS_CLASSES = frozenset({"person"})
"""Classes that are never asked in a colour (GenEval asks none for a person)."""

Polygon = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class ObjectClass:
    """One kind of thing. `aspect` is width / height of its tight box; `natural` the one colour it has, if any."""

    name: str
    emoji: str
    aspect: float
    natural: str | None
    plural: str
    cut: Polygon | None = None


# name | emoji file | aspect | natural colour or - | plural where it is irregular
_CLASS_TABLE = """
person         | 1f9cd      | 0.33 | -      | people
bicycle        | 1f6b2      | 1.32 | red
car            | 1f697      | 1.47 | red
motorcycle     | 1f3cd-fe0f | 1.49 | red
airplane       | 2708-fe0f  | 1.01 | -
bus            | 1f68c      | 1.27 | -
train          | 1f682      | 1.08 | -
truck          | 1f69a      | 1.22 | -
boat           | 26f5       | 1.00 | -
traffic light  | 1f6a6      | 0.43 | black
stop sign      | 1f6d1      | 0.99 | red
bird           | 1f426      | 0.95 | red
cat            | 1f431      | 1.10 | orange
dog            | 1f436      | 1.08 | -
horse          | 1f40e      | 1.00 | brown
sheep          | 1f411      | 1.00 | white  | sheep
cow            | 1f404      | 1.06 | -
elephant       | 1f418      | 1.22 | -
bear           | 1f43b      | 1.12 | brown
zebra          | 1f993      | 1.00 | -
giraffe        | 1f992      | 0.94 | -
backpack       | 1f392      | 0.79 | -
umbrella       | 2602-fe0f  | 1.00 | purple
handbag        | 1f45c      | 0.99 | -
tie            | 1f454      | 0.46 | -
suitcase       | 1f9f3      | 0.64 | blue
frisbee        | 1f94f      | 0.93 | blue
skis           | 1f3bf      | 1.03 | -      | skis
snowboard      | 1f3c2      | 0.77 | -
sports ball    | 26bd       | 1.02 | -
kite           | 1fa81      | 1.01 | -
baseball bat   | 1f3cf      | 0.69 | -
skateboard     | 1f6f9      | 1.00 | -
tennis racket  | 1f3be      | 0.81 | -
bottle         | 1f37e      | 1.01 | green
wine glass     | 1f377      | 0.71 | -
cup            | 2615       | 0.96 | -
fork           | 1f374      | 0.27 | -
knife          | 1f52a      | 1.02 | -      | knives
spoon          | 1f944      | 1.00 | -
bowl           | 1f963      | 0.98 | blue
banana         | 1f34c      | 1.04 | yellow
apple          | 1f34e      | 1.04 | red
sandwich       | 1f96a      | 1.08 | -
orange         | 1f34a      | 0.82 | orange
broccoli       | 1f966      | 0.95 | green
carrot         | 1f955      | 1.02 | orange
hot dog        | 1f32d      | 1.00 | -
pizza          | 1f355      | 0.89 | -
donut          | 1f369      | 0.88 | brown
cake           | 1f382      | 1.02 | -
chair          | 1fa91      | 0.69 | brown
couch          | 1f6cb-fe0f | 1.78 | blue
potted plant   | 1fab4      | 0.67 | -
bed            | 1f6cf-fe0f | 1.41 | -
toilet         | 1f6bd      | 0.91 | white
tv             | 1f4fa      | 0.93 | -
laptop         | 1f4bb      | 0.99 | -
computer mouse | 1f5b1-fe0f | 0.64 | -  | computer mice
computer keyboard | 2328-fe0f | 1.47 | -
cell phone     | 1f4f1      | 0.71 | -
book           | 1f4d5      | 0.79 | red
clock          | 23f0       | 0.88 | -
vase           | 1f3fa      | 0.65 | brown
scissors       | 2702-fe0f  | 1.06 | -      | scissors
teddy bear     | 1f9f8      | 1.01 | -
toothbrush     | 1faa5      | 0.95 | -
"""

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


def _regular_plural(name: str) -> str:
    return name + ("es" if name.endswith(("s", "sh", "ch", "x")) else "s")


@cache
def classes() -> dict[str, ObjectClass]:
    """Every class the world can draw, by name, in the table's order."""
    table = {}
    for line in _CLASS_TABLE.strip().splitlines():
        name, emoji, aspect, natural, *plural = (field.strip() for field in line.split("|"))
        table[name] = ObjectClass(
            name=name,
            emoji=emoji,
            aspect=float(aspect),
            natural=None if natural == "-" else natural,
            plural=plural[0] if plural else _regular_plural(name),
            cut=_CUTS.get(name),
        )
    return table


def object_class(name: str) -> ObjectClass:
    """The class called `name`; ValueError if the world has none."""
    try:
        return classes()[name]
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
    return "an" if word[0] in "aeiou" else "a"
