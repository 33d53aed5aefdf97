"""Case f, its formulas: guided velocities from the raw ones it records."""

import re
from collections.abc import Callable

import pytest

from irg.engine.guidance import guide

from .fixture import Case, close, sub_cases

SETTINGS = re.compile(r"renorm (\w+), text ([\d.]+), img ([\d.]+), renorm_min ([\d.]+)")


def test_all_combinations(case: Callable[[str], Case]) -> None:
    f = case("f_velocity")
    checked = 0
    for name in sub_cases(f, "raw_main"):
        raw = [f[f"{name}.raw_{context}"] for context in ("main", "cfg_text", "cfg_img")]
        for result in f.names:
            if not result.startswith(f"{name}.") or not (match := SETTINGS.search(f.what(result))):
                continue
            renorm, text, image, least = match[1], *(float(n) for n in match.groups()[1:])
            close(guide(*raw, text, image, renorm, least), f[result], result, atol=1e-5)
            checked += 1
    assert checked


@pytest.mark.parametrize("which", ["none", "img_only"])
def test_without_text_guidance_there_is_none(case: Callable[[str], Case], which: str) -> None:
    f = case("f_velocity")
    for name in sub_cases(f, which):
        raw = [f[f"{name}.raw_{context}"] for context in ("main", "cfg_text", "cfg_img")]
        text, image = (float(n) for n in re.findall(r"scale ([\d.]+)", f.what(f"{name}.{which}")))
        assert text <= 1
        close(guide(*raw, text, image), f[f"{name}.{which}"], f"{name}.{which}", atol=1e-6)
