"""Rows made from the mini world: what they teach must be true."""

import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from irg import miniworld as world
from irg.curation import mini
from irg.curation.records import TrajectoryRecord, png, write_shards
from irg.miniworld import load_sprites, render


@pytest.fixture(autouse=True)
def builtin_sprites(monkeypatch):
    """Requests and pictures of the classes that need no download."""
    sprites = load_sprites("builtin")
    sample = world.sample_request
    spoil = world.corrupt
    monkeypatch.setattr(world, "corrupt", lambda *a: spoil(*a, vocab=list(sprites.names)))
    monkeypatch.setattr(world, "render", lambda scene, size=96: render(scene, size, sprites))
    monkeypatch.setattr(world, "sample_request", lambda rng, **k: sample(rng, **{**k, "vocab": list(sprites.names)}))


def test_a_repair_row_ends_in_a_scene_that_satisfies_its_request():
    rng = np.random.default_rng(3)
    mended = 0
    for _ in range(40):
        row = mini.repair_row(rng, 96)
        request = world.Request.from_json(json.loads(row.request))
        sections = world.parse_reflection(row.reflection)
        corrected = world.parse_layout(sections.final_prompt)
        assert world.satisfied(request, world.see(corrected, 96))
        assert Image.open(io.BytesIO(row.improved)).size == (96, 96)
        mended += "nothing is wrong" not in sections.analysis
    assert 15 <= mended < 40  # some pictures have nothing to mend, most have


def test_a_picture_row_shows_the_layout_that_its_thinking_states():
    row = mini.picture_row(np.random.default_rng(5), 96)
    scene = world.parse_layout(row.thinking)
    assert png(world.render(scene, 96)) == row.image
    assert row.reflection is None and row.improved is None


def test_shards_resume_and_do_not_depend_on_how_often_they_were_interrupted(tmp_path):
    data = mini.MiniData(str(tmp_path / "a"), rows=10, repairs=0.5, rows_per_shard=4)
    assert mini.build(data) == 10
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert names == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    before = pq.read_table(tmp_path / "a" / "part-00001.parquet")
    (tmp_path / "a" / "part-00001.parquet").unlink()
    assert mini.build(data) == 4
    assert pq.read_table(tmp_path / "a" / "part-00001.parquet").equals(before)


def test_pictures_are_structs_that_dataset_viewers_show(tmp_path):
    picture = png(np.zeros((4, 4, 3), np.uint8))
    assert write_shards([TrajectoryRecord("p", "t", picture)], tmp_path, 10) == 1
    row = pq.read_table(tmp_path / "part-00000.parquet").to_pylist()[0]
    assert row["image"] == {"bytes": picture, "path": None} and row["improved"] is None
