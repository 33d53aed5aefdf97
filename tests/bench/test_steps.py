"""The comparison of samplers counts what the network does."""

import pytest
from PIL import Image

from irg.engine.settings import DrawSettings
from steps import forwards, psnr


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        (DrawSettings(11, 1.0, cfg_text_scale=1.0), 10),
        (DrawSettings(11, 1.0, cfg_interval=(0.0, 1.0)), 20),
        (DrawSettings(11, 1.0, cfg_interval=(0.65, 1.0)), 14),  # 1.0, 0.9, 0.8, 0.7
        (DrawSettings(11, 1.0, cfg_interval=(0.65, 1.0), network_interval=4), 7),  # steps 0, 1; 4, 5, 9
        (DrawSettings(11, 1.0, cfg_interval=(0.0, 1.0), network_gap=0.2), 12),  # steps 0, 1, 3, 5, 7, 9
    ],
)
def test_forwards(settings: DrawSettings, count: int) -> None:
    assert forwards(settings) == count


def test_psnr() -> None:
    """One level of 256 in every value: 20 log10(255)."""
    assert psnr(Image.new("RGB", (4, 4), (9, 9, 9)), Image.new("RGB", (4, 4), (10, 10, 10))) == pytest.approx(
        48.13, abs=0.01
    )
