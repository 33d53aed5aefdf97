"""How near images are to the rendering of their plans."""

import numpy as np
import pytest

from irg_mini import world
from irg_mini.measure.drawing import Drawing, covered, decibels, sheet, table

BLACK = np.zeros((16, 16, 3), np.uint8)


def test_decibels() -> None:
    off = np.full_like(BLACK, 51)  # a fifth of the range: 10 log10(25)
    assert decibels(off, BLACK) == pytest.approx(13.979, abs=1e-3)
    assert decibels(BLACK, BLACK) == pytest.approx(100.0)
    left = np.zeros((16, 16), bool)
    left[:, :8] = True
    half = BLACK.copy()
    half[:, 8:] = 255
    assert (decibels(half, BLACK, left), decibels(half, BLACK, ~left)) == (pytest.approx(100.0), pytest.approx(0.0))


def test_covered_cells_hold_the_thing_and_little_else() -> None:
    scene = world.Scene("studio", (world.Thing("bus", None, 3, 8, "medium"),))
    ((_, _, (left, top, right, bottom)),) = world.boxes(scene, 128)
    mask = covered(scene, 128)
    assert mask.shape == (128, 128) and mask[max(top, 0) : bottom, max(left, 0) : right].all()
    assert mask.sum() <= (right - left + 16) * (bottom - top + 16)
    assert not covered(world.Scene("studio", ()), 128).any()


def test_the_table_and_the_sheet() -> None:
    mask = np.zeros((16, 16), bool)
    mask[:8] = True
    off = BLACK.copy()
    off[:8] = 51
    found = [Drawing(off, BLACK, mask, True, True), Drawing(off, BLACK, mask, False, True)]
    lines = table(found).splitlines()
    assert lines[2:5] == [
        "| dB to the rendering | 16.99 | 16.99–16.99 | 2 |",  # half of the pixels are off
        "| dB, things | 13.98 | 13.98–13.98 | 2 |",
        "| dB, background | 100.00 | 100.00–100.00 | 2 |",
    ]
    assert lines[5].startswith("| image accepted, % | 50.0 |")
    assert lines[6].startswith("| rendering accepted, % | 100.0 ")
    assert sheet(found, columns=3).size == (3 * 20 + 4, 2 * 20 + 4)
