"""Image sizes as a user says them, and those that a model's network draws."""

import re
from dataclasses import dataclass
from fractions import Fraction

from irg.recipes import choose

PRESETS = {"square": "1:1", "landscape": "4:3", "portrait": "3:4", "wide": "16:9", "tall": "9:16"}
"""Names of BAGEL's aspect ratios, width to height."""


@dataclass(frozen=True)
class ImageSizes:
    """The sizes that a model draws: sides are multiples of ``stride`` up to ``largest``, usually up to ``usual``."""

    usual: int
    stride: int
    largest: int

    def pixels(self, size: str | int) -> tuple[int, int]:
        """(width, height) of a size as a user says it. A ratio keeps the usual longest side, and gets the shorter one
        that comes nearest: BAGEL's own sizes at 1024 (4:3 is 1024x768, 16:9 is 1024x576).

        Raises:
            ValueError: it is no size, or the ratio's shorter side would be less than a stride.
        """
        parsed = parse_size(size)
        if not isinstance(parsed, Fraction):
            return parsed
        exact = self.usual * min(parsed, 1 / parsed)
        if exact < self.stride:
            raise ValueError(f"size {size}: the shorter side would have less than the {self.stride} pixels it needs")
        below = int(exact) // self.stride * self.stride
        short = min(below, below + self.stride, key=lambda side: max(side / exact, exact / side))
        return (self.usual, short) if parsed >= 1 else (short, self.usual)

    def check(self, width: int, height: int) -> None:
        """Check that the network draws images of this size.

        Raises:
            ValueError: it does not; the side is named.
        """
        for name, side in (("height", height), ("width", width)):
            if side % self.stride or not self.stride <= side <= self.largest:
                wanted = f"a multiple of {self.stride} from {self.stride} to {self.largest}"
                raise ValueError(f"{name} must be {wanted} for this model, got {side}")


def parse_size(size: str | int) -> tuple[int, int] | Fraction:
    """(width, height) of ``"1024x576"`` or ``1024``; the ratio, width to height, of ``"16:9"`` or a preset.

    Raises:
        ValueError: it is none of these.
    """
    text = str(size).strip().lower()
    if match := re.fullmatch(r"([0-9]{1,6})(?:[x×]([0-9]{1,6}))?", text):
        return int(match[1]), int(match[2] or match[1])
    ratio = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,6})?):([0-9]{1,6}(?:\.[0-9]{1,6})?)", PRESETS.get(text, text))
    if ratio and Fraction(ratio[1]) and Fraction(ratio[2]):
        return Fraction(ratio[1]) / Fraction(ratio[2])
    raise ValueError(
        f"size must be WIDTHxHEIGHT, one number, a ratio such as 16:9, or one of {', '.join(PRESETS)}; "
        f"got {size!r}{choose(text, PRESETS)}"
    )
