"""Sprites, backgrounds, the renderer and degraded images. Needs no download."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

import irg_mini.world as mw
from irg_mini.world import sprites as sprites_module
from irg_mini.world.backgrounds import background_pixels
from irg_mini.world.render import tint

BUILTIN = mw.load_sprites("builtin")
TYPICAL = {
    "red": (220, 40, 40),
    "orange": (255, 140, 30),
    "yellow": (250, 215, 30),
    "green": (40, 170, 60),
    "blue": (40, 95, 230),
    "purple": (135, 55, 205),
    "pink": (255, 140, 190),
    "brown": (125, 75, 35),
    "black": (35, 35, 40),
    "white": (240, 240, 243),
}


def some_scene(seed: int) -> mw.Scene:
    rng = np.random.default_rng(seed)
    return mw.sample_scene(mw.sample_request(rng, vocab=BUILTIN.names), rng)


def test_builtin_sprites_are_tight_and_of_their_class() -> None:
    assert 12 <= len(BUILTIN.names) <= 16
    for name, image in BUILTIN.images.items():
        assert image.dtype == np.uint8 and image.shape[2] == 4 and max(image.shape[:2]) <= 128
        solid = image[..., 3] > 8
        assert solid[0].any() and solid[-1].any() and solid[:, 0].any() and solid[:, -1].any(), name
        assert image.shape[1] / image.shape[0] == pytest.approx(mw.object_class(name).aspect, rel=0.05)


@pytest.mark.parametrize("size", [64, 96, 128, 192])
def test_rendering_is_deterministic(size: int) -> None:
    scene = some_scene(size)
    first = mw.render(scene, size, BUILTIN)
    assert first.shape == (size, size, 3) and first.dtype == np.uint8
    assert np.array_equal(first, mw.render(scene, size, BUILTIN))
    lit = [mw.render(scene, size, BUILTIN, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert np.array_equal(lit[0], lit[1]) and not np.array_equal(lit[0], lit[2])
    assert background_pixels(scene.background, size).max() <= 255  # painting has not touched the shared background


def test_boxes_are_where_the_paint_is() -> None:
    for name in ("book", "stop sign", "traffic light", "suitcase"):
        for size in (96, 160):
            scene = mw.Scene("studio", (mw.Thing(name, "red", 4, 6, "large"),))
            [(_, color, (x0, y0, x1, y1))] = mw.boxes(scene, size)
            image = mw.render(scene, size, BUILTIN).astype(int)
            rows, cols = np.nonzero(image[..., 0] - image[..., 1] > 70)
            assert color == "red"
            assert abs(cols.min() - x0) <= 2 and abs(cols.max() + 1 - x1) <= 2, name
            assert abs(rows.min() - y0) <= 2 and abs(rows.max() + 1 - y1) <= 2, name


def test_natural_colors_are_reported() -> None:
    things = tuple(mw.Thing(name, None, 2 + 4 * i, 5, "small") for i, name in enumerate(("apple", "pizza")))
    assert [color for _, color, _ in mw.boxes(mw.Scene("sea", things), 96)] == ["red", None]


@pytest.mark.parametrize("color", mw.COLORS)
def test_tints_are_told_apart_and_keep_shading(color: str) -> None:
    for name, image in BUILTIN.images.items():
        tinted = tint(image, color)
        assert np.array_equal(tinted[..., 3], image[..., 3])
        typical = np.median(tinted[image[..., 3] > 200][:, :3], axis=0)
        distance = {other: float(np.abs(typical - rgb).sum()) for other, rgb in TYPICAL.items()}
        assert min(distance, key=distance.__getitem__) == color, (name, typical)
        brightness = image[image[..., 3] > 200][:, :3].astype(float) @ (0.35, 0.45, 0.2)
        shades = tinted[image[..., 3] > 200][:, :3].astype(float).sum(1)
        assert np.corrcoef(brightness, shades)[0, 1] > 0.6, name


def test_near_things_cover_far_ones() -> None:
    far, near = mw.Thing("book", "red", 5, 5, "large"), mw.Thing("book", "blue", 5, 6, "large")
    images = [mw.render(mw.Scene("sea", order), 96, BUILTIN) for order in ((far, near), (near, far))]
    assert np.array_equal(*images)
    red, _, blue = images[0][52, 44].astype(int)
    assert blue > red + 60


def test_backgrounds_differ_and_are_single_words() -> None:
    assert len(mw.BACKGROUNDS) >= 8
    means = []
    for name in mw.BACKGROUNDS:
        assert name.isalpha()
        pixels = background_pixels(name, 96)
        assert pixels.shape == (96, 96, 3) and pixels.min() >= 0 and pixels.max() <= 255
        means.append(pixels.reshape(2, 48, 96, 3).mean((1, 2)).ravel())
    for index, mean in enumerate(means):
        assert all(np.abs(mean - other).max() > 12 for other in means[:index])
    with pytest.raises(ValueError, match="unknown background 'moon'"):
        mw.render(mw.Scene("moon", ()), 96, BUILTIN)


def test_degrading_degrades() -> None:
    image = mw.render(some_scene(3), 96, BUILTIN)
    for how in mw.DEGRADATIONS:
        degraded = mw.degrade(image, np.random.default_rng(0), how)
        assert degraded.shape == image.shape and degraded.dtype == np.uint8
        assert np.abs(degraded.astype(int) - image).mean() > 1
        assert np.array_equal(degraded, mw.degrade(image, np.random.default_rng(0), how))
    with pytest.raises(ValueError, match="unknown degradation 'burnt'"):
        mw.degrade(image, np.random.default_rng(0), "burnt")


# ---- fetching --------------------------------------------------------------------------------------------------------


def test_missing_sprites_say_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="irg data sprites"):
        mw.load_sprites("fluent", tmp_path)
    with pytest.raises(ValueError, match="unknown sprites 'photos'"):
        mw.load_sprites("photos")
    with pytest.raises(ValueError, match="builtin sprites have no 'dog'"):
        mw.render(mw.Scene("sea", (mw.Thing("dog", None, 5, 5, "large"),)), 96, BUILTIN)


def test_a_wrong_or_absent_archive_is_refused(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.tgz"
    wrong.write_bytes(b"not the package")
    with pytest.raises(mw.SpriteFetchError, match="sha512 differs"):
        mw.fetch_sprites(tmp_path / "cache", archive=wrong)
    with pytest.raises(mw.SpriteFetchError, match="cannot read"):
        mw.fetch_sprites(tmp_path / "cache", archive=tmp_path / "absent.tgz")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_failing_npm_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sprites_module.shutil, "which", lambda name: None)
    with pytest.raises(mw.SpriteFetchError, match="npm is not installed"):
        mw.fetch_sprites(tmp_path, say=lambda line: None)
    monkeypatch.setattr(sprites_module.shutil, "which", lambda name: "/usr/bin/npm")

    def fail(command: list[str], **options: object) -> subprocess.CompletedProcess:
        return subprocess.CompletedProcess(command, 1, "", "npm error code ENOTFOUND\nnpm error no network")

    monkeypatch.setattr(sprites_module.subprocess, "run", fail)
    said: list[str] = []
    with pytest.raises(mw.SpriteFetchError, match="no network"):
        mw.fetch_sprites(tmp_path, say=said.append)
    assert "15.8 MB" in said[0] and "npm registry" in said[0]
    assert list(tmp_path.iterdir()) == []


def test_fetched_sprites_if_they_are_here() -> None:
    try:
        fluent = mw.load_sprites("fluent")
    except ValueError as error:
        pytest.skip(str(error))
    assert fluent.names == list(mw.classes("full"))
    for name, image in fluent.images.items():
        assert image.shape[1] / image.shape[0] == pytest.approx(mw.object_class(name).aspect, rel=0.05)
    assert mw.render(mw.Scene("meadow", (mw.Thing("dog", None, 5, 5, "large"),))).std() > 20
