"""Rows made from the mini world: what they teach must be true."""

import hashlib
import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from trajectory_rows import read_rows, write_shards

from irg.cli import main as cli
from irg.curation.records import TrajectoryRecord, png
from irg.results.reflection import is_done
from irg_mini import world
from irg_mini.data import rows as mini


def data(out="", **options) -> mini.MiniData:
    return mini.MiniData(str(out), sprites="builtin", **options)


def test_a_repair_row_ends_in_a_scene_that_satisfies_its_request():
    rng = np.random.default_rng(3)
    corrected_rows = 0
    for _ in range(40):
        row = mini.record(rng, data(), repair=True)
        request = world.Request.from_json(json.loads(row.request))
        sections = world.parse_reflection(row.reflection)
        corrected = world.parse_layout(sections.final_prompt)
        assert world.satisfied(request, world.see(corrected, 128))
        assert png(world.render(corrected, 128, world.load_sprites("builtin"))) == row.improved
        assert Image.open(io.BytesIO(row.image)).size == (128, 128)
        corrected_rows += not is_done(row.reflection)
        assert sections.analysis.startswith("in the picture: ")
    assert 15 <= corrected_rows < 40  # some images have nothing to correct, most have


def test_a_misplanned_row_thinks_what_it_shows_and_ends_right():
    """The same drafts as without, but thought so from the start; a plan of an image that is only blurred is right."""
    wrong = 0
    for seed in range(12):
        plain, row = (
            mini.record(np.random.default_rng(seed), data(misplanned=share), repair=True) for share in (0.0, 1.0)
        )
        assert row.image == plain.image
        request = world.Request.from_json(json.loads(row.request))
        assert world.satisfied(request, world.see(world.parse_layout(plain.thinking), 128))
        planned = world.see(world.parse_layout(row.thinking), 128)
        wrong += not world.satisfied(request, planned)
        final = world.parse_layout(world.parse_reflection(row.reflection).final_prompt)
        assert world.satisfied(request, world.see(final, 128))
    assert wrong >= 6


def test_a_near_miss_is_a_row_that_plans_and_draws_what_misses_a_relation_and_ends_right():
    for seed in range(6):
        row = mini.record(np.random.default_rng(seed), data(near_misses=1.0, tags=("position",)), repair=True)
        request, planned = world.Request.from_json(json.loads(row.request)), world.parse_layout(row.thinking)
        seen = world.see(planned, 128)
        assert {flaw.kind for flaw in world.find_flaws(request, seen, 128)} == {"wrong_place"}
        sections = world.parse_reflection(row.reflection)
        assert " is not " in sections.faults
        assert all(f"{thing.name} at {thing.place}" in sections.seen for thing in planned.things)
        assert world.satisfied(request, world.see(world.parse_layout(sections.final_prompt), 128))


def test_a_wrong_plan_is_replanned_and_a_right_one_that_was_drawn_wrong_is_kept():
    replanned = kept = 0
    for seed in range(24):
        row = mini.record(
            np.random.default_rng(seed), data(replan=True, near_misses=0.5, tags=("position",)), repair=True
        )
        request, planned = world.Request.from_json(json.loads(row.request)), world.parse_layout(row.thinking)
        sections = world.parse_reflection(row.reflection)
        final = world.parse_layout(sections.final_prompt)
        assert world.satisfied(request, world.see(final, 128))
        assert final.background == planned.background
        assert png(world.render(final, 128, world.load_sprites("builtin"))) == row.improved
        if world.find_flaws(request, world.see(planned, 128), 128):
            replanned += 1
            assert sections.improvements.startswith("a new plan.")
            assert sections.steps == f"keep 0 things, fix 0, add {len(final.things)}, remove {len(planned.things)}."
        else:
            kept += 1
            assert "a new plan" not in row.reflection
    assert replanned >= 6 and kept >= 6


def test_an_image_row_shows_the_layout_that_its_thinking_states():
    row = mini.record(np.random.default_rng(5), data(), repair=False)
    scene = world.parse_layout(row.thinking)
    assert png(world.render(scene, 128, world.load_sprites("builtin"))) == row.image
    assert row.reflection is None and row.improved is None


def test_rows_keep_to_the_forms_asked_for():
    rng, some = np.random.default_rng(1), data(tags=("compound", "counting"))
    tags = {json.loads(mini.record(rng, some, repair).request)["tag"] for repair in [False, True] * 6}
    assert tags == {"compound", "counting"}


def test_mistakes_are_named_before_anything_is_written():
    with pytest.raises(
        ValueError, match="tags: geneval has no requests of the form 'countng'; choose from single_object"
    ):
        data(tags=("countng",))
    with pytest.raises(ValueError, match="tags: core has no requests of the form 'stacking'"):
        data(vocab="core", tags=("stacking",))
    for name in ("repairs", "misplanned", "near_misses"):
        with pytest.raises(ValueError, match=f"{name} must be between 0 and 1, got 3"):
            data(**{name: 3.0})


def test_shards_resume_and_do_not_depend_on_how_often_they_were_interrupted(tmp_path):
    some = data(tmp_path / "a", rows=10, repairs=0.5, rows_per_shard=4)
    assert mini.build(some) == 10
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert names == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    before = pq.read_table(tmp_path / "a" / "part-00001.parquet")
    (tmp_path / "a" / "part-00001.parquet").unlink()
    assert mini.build(some) == 4
    assert pq.read_table(tmp_path / "a" / "part-00001.parquet").equals(before)
    assert len(list(read_rows(sorted((tmp_path / "a").glob("*.parquet"))))) == 10


def test_images_are_structs_that_dataset_viewers_show(tmp_path):
    image = png(np.zeros((4, 4, 3), np.uint8))
    write_shards([TrajectoryRecord("p", "t", image)], tmp_path)
    row = pq.read_table(tmp_path / "part-00000.parquet").to_pylist()[0]
    assert row["image"] == {"bytes": image, "path": None} and row["improved"] is None
    assert row["id"] == row["digest"][:32]


def test_a_row_is_named_by_what_it_holds():
    assert TrajectoryRecord("ab", "c", b"d").digest != TrajectoryRecord("a", "bc", b"d").digest
    assert TrajectoryRecord("a", "b", b"c").digest == hashlib.sha256(b"1:a1:b1:c--").hexdigest()


def test_a_file_where_the_rows_are_to_be(tmp_path, capsys):
    (tmp_path / "taken").write_text("mine")
    words = ["data", "mini", "--out", str(tmp_path / "taken"), "--rows", "1", "--sprites", "builtin"]
    assert cli.main(words) == 2
    assert capsys.readouterr().err == f"irg data: error: {tmp_path / 'taken'}: is a file, a folder is needed\n"
    with pytest.raises(ValueError, match="rows must be at least 1, got 0"):
        data(rows=0)
