"""Guidance against the formulas written out image by image."""

from typing import get_args

import pytest
import torch
from torch import Tensor

from irg.engine.flow import time_grid
from irg.engine.guidance import guide, scales_at
from irg.engine.settings import RenormType

G, D = 6, 8
RENORM_TYPES: tuple[RenormType, ...] = get_args(RenormType)


def velocities(seed: int, tokens: int = G) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    m, u, w = (torch.randn(tokens, D, generator=generator) for _ in range(3))
    return m, u, w


def plain(m: Tensor, u: Tensor, w: Tensor, text: float, image: float, kind: str, least: float) -> Tensor:
    """One image, as golden/README.md words it."""

    def factor(main: Tensor, guided: Tensor, whole: bool) -> Tensor:
        norm = (lambda x: x.norm()) if whole else (lambda x: x.norm(dim=-1, keepdim=True))
        return (norm(main) / (norm(guided) + 1e-8)).clamp(least, 1.0)

    if text <= 1:
        return m
    g = u + text * (m - u)
    if kind == "text_channel":
        g = g * factor(m, g, whole=False)
        return w + image * (g - w) if image > 1 else g
    if image > 1:
        g = w + image * (g - w)
    return g * factor(m, g, whole=kind == "global")


@pytest.mark.parametrize("kind", RENORM_TYPES)
@pytest.mark.parametrize("scales", [(4.0, 2.0), (4.0, 1.0), (1.3, 1.2), (1.0, 2.0), (0.5, 0.5)])
@pytest.mark.parametrize("least", [0.0, 0.6, 1.0])
def test_formulas(kind: RenormType, scales: tuple[float, float], least: float) -> None:
    m, u, w = velocities(0)
    assert torch.allclose(guide(m, u, w, *scales, kind, least), plain(m, u, w, *scales, kind, least), atol=1e-6)


@pytest.mark.parametrize("kind", RENORM_TYPES)
def test_images_in_one_call(kind: RenormType) -> None:
    images = [velocities(seed, tokens=2 + seed % 3) for seed in range(6)]
    groups = torch.arange(6).repeat_interleave(torch.tensor([len(image[0]) for image in images]))
    branches = [torch.cat(v) for v in zip(*images, strict=True)]
    together = guide(*branches, 4.0, 2.0, kind, 0.3, groups)
    alone = [plain(*image, 4.0, 2.0, kind, 0.3) for image in images]
    assert torch.allclose(together, torch.cat(alone), atol=1e-6)


def test_two_images_may_be_one_group() -> None:
    m, u, w = velocities(1)
    groups = torch.tensor([0, 0, 0, 1, 1, 1])
    as_one = guide(m, u, w, 4.0, 2.0, "global", groups_G=torch.zeros(G, dtype=torch.int64))
    assert torch.allclose(as_one, guide(m, u, w, 4.0, 2.0, "global"), atol=1e-6)
    apart = guide(m, u, w, 4.0, 2.0, "global", groups_G=groups)
    assert not torch.allclose(apart, as_one, atol=1e-3)
    half = guide(m[:3], u[:3], w[:3], 4.0, 2.0, "global", groups_G=groups[:3])
    assert torch.allclose(apart[:3], half, atol=1e-6)


def test_branches_that_are_not_there() -> None:
    m, u, w = velocities(2)
    assert torch.equal(guide(m, None, w, 4.0, 2.0), m)
    assert torch.allclose(guide(m, u, None, 4.0, 2.0), guide(m, u, w, 4.0, 1.0), atol=1e-6)
    assert torch.equal(guide(m, u, w, 1.0, 2.0), m)


def test_equal_branches_change_nothing() -> None:
    m, _, _ = velocities(3)
    for kind in RENORM_TYPES:
        assert torch.allclose(guide(m, m, m, 4.0, 2.0, kind), m, atol=1e-5)


def test_zero_velocity_is_finite() -> None:
    zero = torch.zeros(G, D)
    for kind in RENORM_TYPES:
        assert torch.equal(guide(zero, zero, zero, 4.0, 2.0, kind), zero)


def test_half_precision_is_guided_in_float32() -> None:
    m, u, w = (v.to(torch.bfloat16) for v in velocities(4))
    got = guide(m, u, w, 4.0, 2.0, "channel")
    assert got.dtype == torch.float32
    assert torch.allclose(got, plain(m.float(), u.float(), w.float(), 4.0, 2.0, "channel", 0.0), atol=1e-5)


def test_interval_is_open_below_and_closed_above() -> None:
    assert scales_at(0.4, 4.0, 2.0, (0.4, 1.0)) == (1.0, 1.0)
    assert scales_at(1.0, 4.0, 2.0, (0.4, 1.0)) == (4.0, 2.0)
    assert scales_at(0.41, 4.0, 2.0, (0.4, 1.0)) == (4.0, 2.0)
    assert scales_at(0.0, 4.0, 2.0, (0.0, 1.0)) == (1.0, 1.0)


def test_interval_ends_are_compared_in_float32() -> None:
    grid = time_grid(11, 1.0)
    assert float(grid[6]) != 0.4  # 0.4 in float32 is a little more than 0.4
    assert scales_at(grid[6], 4.0, 2.0, (0.4, 1.0)) == (1.0, 1.0)
    assert scales_at(float(grid[3]), 4.0, 2.0, (0.0, 0.7)) == scales_at(grid[3], 4.0, 2.0, (0.0, 0.7)) == (4.0, 2.0)
