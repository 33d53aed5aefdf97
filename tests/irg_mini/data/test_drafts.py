"""``irg data drafts``: rows from a model's own drafts."""

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from trajectory_rows import read_rows

from irg_mini import world
from irg_mini.data import drafts


def test_drafts_become_shards_and_resume(tmp_path: Path) -> None:
    options = drafts.Drafts(
        "mini",
        str(tmp_path / "d"),
        rows=3,
        batch=2,
        num_timesteps=3,
        rows_per_shard=2,
        sprites="builtin",
    )
    assert drafts.build(options) == 3
    files = sorted((tmp_path / "d").iterdir())
    assert [file.name for file in files] == ["part-00000.parquet", "part-00001.parquet"]
    found = list(read_rows(files))
    for row in found:
        assert world.parse_reflection(row.reflection).final_prompt.startswith("Scene: ")
        assert row.image != row.improved
    before = files[1].read_bytes()
    files[1].unlink()
    assert drafts.build(options) == 1 and files[1].read_bytes() == before


def test_flawed_drafts_are_written_as_often_as_asked(tmp_path: Path) -> None:
    options = drafts.Drafts(
        "mini",
        str(tmp_path),
        rows=8,
        rows_per_shard=8,
        batch=8,
        num_timesteps=2,
        tags=("compound", "stacking"),
        seed=2,
        sprites="builtin",
        flawed_copies=3,
    )
    drafts.build(options)
    found = [row.reflection for row in read_rows(sorted(tmp_path.iterdir()))]
    flawed = [text for text in found if "nothing is wrong" not in text]  # one step draws hardly anything
    assert len(set(flawed)) >= 1 and len(flawed) == 3 * (8 - (len(found) - len(flawed)))
    with pytest.raises(ValueError, match="flawed_copies must be at least 1, got 0"):
        drafts.Drafts("mini", str(tmp_path), flawed_copies=0)


def test_the_world_draws_what_the_model_planned(tmp_path: Path) -> None:
    options = drafts.Drafts(
        "mini",
        str(tmp_path),
        rows=6,
        batch=6,
        sprites="builtin",
        generator="world",
        tags=("compound",),
    )
    drafts.build(options)
    found = pq.read_table(tmp_path / "part-00000.parquet").to_pylist()
    assert 4 <= len(found) <= 6
    for row in found:
        assert row["source"] == "plan:mini"
        planned = world.parse_layout(row["thinking"])
        image = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])))
        assert np.array_equal(image, world.render(planned, 128, world.load_sprites("builtin")))
        request = world.Request.from_json(json.loads(row["request"]))
        flawed = bool(world.find_flaws(request, world.see(planned, 128), size=128))
        assert flawed == ("nothing is wrong" not in row["reflection"])


def test_the_world_can_not_draw_what_is_no_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def talk(pipe: Any, prompts: list[str], seeds: list[int], **settings: Any) -> list[Any]:
        return [SimpleNamespace(thinking="A cat, softly lit.", image=Image.new("RGB", (128, 128))) for _ in prompts]

    monkeypatch.setattr(drafts, "generate", talk)
    options = drafts.Drafts("mini", str(tmp_path / "d"), rows=2, sprites="builtin", generator="world")
    with pytest.raises(ValueError, match="mini plans no layouts that the mini world could draw"):
        drafts.build(options)
    assert not (tmp_path / "d").exists()


def test_an_unknown_model_or_detector_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown model 'minni'"):
        drafts.build(drafts.Drafts("minni", str(tmp_path)))
    with pytest.raises(ValueError, match="no detector in detector-x"):
        drafts.build(drafts.Drafts("mini", str(tmp_path), "detector-x"))
