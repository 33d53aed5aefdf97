"""Image sizes as a user says them."""

from fractions import Fraction

import pytest

from irg.reasoning.settings import Settings, check_options, with_options
from irg.reasoning.sizes import PRESETS, ImageSizes, parse_size

BAGEL = ImageSizes(usual=1024, stride=16, largest=1024)
MINI = ImageSizes(usual=128, stride=16, largest=128)


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ("1:1", (1024, 1024)),
        ("4:3", (1024, 768)),
        ("3:4", (768, 1024)),
        ("16:9", (1024, 576)),
        ("9:16", (576, 1024)),
        ("3:2", (1024, 688)),
        ("2.39:1", (1024, 432)),
        ("square", (1024, 1024)),
        ("landscape", (1024, 768)),
        ("portrait", (768, 1024)),
        (" Wide ", (1024, 576)),
        ("tall", (576, 1024)),
        ("640x480", (640, 480)),
        ("640×480", (640, 480)),
        (512, (512, 512)),
    ],
)
def test_bagels_sizes(size: str | int, wanted: tuple[int, int]) -> None:
    assert BAGEL.pixels(size) == wanted


@pytest.mark.parametrize(("size", "wanted"), [("4:3", (128, 96)), ("16:9", (128, 80)), ("tall", (80, 128))])
def test_a_small_model_gets_the_nearest_ratio(size: str, wanted: tuple[int, int]) -> None:
    """16:9 of 128 is 72: 80 is off by a factor of 1.11, 64 by 1.125."""
    assert MINI.pixels(size) == wanted
    MINI.check(*wanted)


@pytest.mark.parametrize("size", ["", "x", "16:", ":9", "16:0", "0:1", "-1:2", "1e3", "16/9", "1:2:3", "widest", "64x"])
def test_what_is_no_size(size: str) -> None:
    with pytest.raises(ValueError, match="size must be WIDTHxHEIGHT, one number, a ratio such as 16:9, or one of"):
        parse_size(size)


def test_ratios_that_are_too_narrow() -> None:
    with pytest.raises(ValueError, match="size 9:1: the shorter side would have less than the 16 pixels"):
        MINI.pixels("9:1")
    assert MINI.pixels("8:1") == (128, 16)


@pytest.mark.parametrize(
    ("size", "told"),
    [
        ((1024, 1040), "height must be a multiple of 16 from 16 to 1024 for this model, got 1040"),
        ((1000, 512), "width must be a multiple of 16"),
        ((0, 512), "width must be"),
    ],
)
def test_sizes_that_the_network_does_not_draw(size: tuple[int, int], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        BAGEL.check(*size)


def test_size_among_the_settings() -> None:
    for size, wanted in (("16:9", (1024, 576)), ("640x480", (640, 480))):
        settings = with_options(Settings(), {"size": size, "rounds": 2}, BAGEL)
        assert (settings.width, settings.height, settings.rounds) == (*wanted, 2)
    with pytest.raises(ValueError, match="size 16:9: how many pixels that is depends on the model"):
        with_options(Settings(), {"size": "16:9"})
    with pytest.raises(ValueError, match="size stands for width and height"):
        with_options(Settings(), {"size": "16:9", "width": 64}, BAGEL)
    check_options({"size": "16:9"})
    with pytest.raises(ValueError, match="size must be"):
        check_options({"size": "16;9"})


def test_presets_are_ratios() -> None:
    assert {name: parse_size(name) for name in PRESETS} == {
        "square": 1,
        "landscape": Fraction(4, 3),
        "portrait": Fraction(3, 4),
        "wide": Fraction(16, 9),
        "tall": Fraction(9, 16),
    }
