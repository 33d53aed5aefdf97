"""The exported set: shuffled and split the same for everybody; shards, the authors' format, the card, the hub."""

import base64
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from local_hub import LocalHub
from trajectory_rows import read_rows

from irg.curation import buckets
from irg.curation.build import build
from irg.curation.build_folder import BuildFolder
from irg.curation.check import validate
from irg.curation.export import export, push
from irg.curation.recipe import DataRecipe
from irg.curation.records import TrajectoryRecord
from irg.curation.view import sample, sample_of_shards
from irg.learning.data.conversation_writer import conversation
from irg.learning.modes import IRGL, Mode
from irg.reasoning.prompts import BAGEL_PROFILE
from irg.recipes import build as read

WORLD = {"kind": "miniworld", "sprites": "builtin"}
LOOK = {**WORLD, "size": 32}


def recipe(out: Path, rows: int = 40, **changes: Any) -> DataRecipe:
    return read(
        DataRecipe,
        {
            "out": str(out),
            "prompts": {"sources": [{**WORLD, "rows": rows}], "repeats": True},
            "filter": {"decontaminate": False, "near_duplicates": None},
            "draft": LOOK,
            "reflect": LOOK,
            "target": LOOK,
            "think": WORLD,
            "judges": [{**LOOK, "name": "world"}],
            "rows_per_block": 16,
            "hashes": True,
            "export": {"validation": 0.3, "times": False},
            **changes,
        },
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> BuildFolder:
    pytest.importorskip("imagehash")
    plan = recipe(tmp_path_factory.mktemp("build"))
    build(plan, log=lambda _: None)
    return BuildFolder.of(plan)


def exported(built: BuildFolder, out: Path, **settings: Any) -> tuple[Path, Any]:
    fields = {**vars(built.recipe.export), "out": str(out), **settings}
    plan = DataRecipe(**{**vars(built.recipe), "export": type(built.recipe.export)(**fields)})
    return export(BuildFolder.of(plan))


def ids(folder: Path) -> list[str]:
    return [name for file in sorted(folder.glob("*.parquet")) for name in pq.read_table(file)["id"].to_pylist()]


def test_shards_are_bounded_shuffled_and_the_same_for_everybody(
    built: BuildFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, summary = exported(built, tmp_path / "small", shard_mb=0.008)
    assert summary.kept["train"] + summary.kept["val"] == 40 and summary.shards["train"] > 3
    for file in (small / "train").glob("*.parquet"):
        rows = pq.read_table(file).to_pylist()
        size = sum(len(row[name]["bytes"]) for row in rows for name in ("image", "improved") if row[name])
        assert size <= 8_000 or len(rows) == 1
    large, _ = exported(built, tmp_path / "large")
    monkeypatch.setattr(buckets, "MOST_FILES", 2)
    third, _ = exported(built, tmp_path / "third", shard_mb=0.008)
    assert ids(small / "train") == ids(large / "train") == ids(third / "train")
    order = [row for block in built.blocks() for row in built.accepted(block)]
    assert ids(large / "train") != [name for name in order if name in set(ids(large / "train"))]
    assert [f.read_bytes() for f in sorted(small.rglob("*.parquet"))] == [
        f.read_bytes() for f in sorted(third.rglob("*.parquet"))
    ]
    other, _ = exported(built, tmp_path / "other", seed=1)
    assert ids(other / "train") != ids(large / "train")


def test_a_prompt_is_in_train_or_in_val(built: BuildFolder, tmp_path: Path) -> None:
    out, summary = exported(built, tmp_path / "set")
    assert 3 < summary.kept["val"] < 25
    prompts = [
        {row.prompt.lower() for row in read_rows(sorted((out / split).glob("*.parquet")))} for split in ("train", "val")
    ]
    assert prompts[0] and not prompts[0] & prompts[1]
    assert len(validate(out).problems) == 0 and validate(out).rows == 40


def test_training_reads_it_and_the_viewer_shows_it(built: BuildFolder, tmp_path: Path) -> None:
    out, _ = exported(built, tmp_path / "set")
    rows = list(read_rows(sorted(out.rglob("*.parquet"))))
    assert {row.improved is None for row in rows} == {True, False}
    table = pq.read_table(out / "train" / "00000.parquet")
    assert str(table.schema.field("image").type) == "struct<bytes: binary, path: string>"
    assert {"world_target_following", "world_gain_1", "image_phash", "provenance", "license"} <= set(table.schema.names)
    told = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert list(told) == table.schema.names and told["image"] == told["improved"] == {"_type": "Image"}
    head = yaml.safe_load((out / "README.md").read_text().split("---")[1])
    assert head["configs"][0]["data_files"][0] == {"split": "train", "path": "train/*.parquet"}
    sheet = (out / "datasheet.md").read_text()
    assert "| Apache-2.0 | 40 | mini world |" in sheet and "**Not certified clean of benchmarks**" in sheet


def test_an_export_is_replaced_whole_and_nothing_else_is(built: BuildFolder, tmp_path: Path) -> None:
    out, _ = exported(built, tmp_path / "set", shard_mb=0.008)
    many = len(list((out / "train").iterdir()))
    exported(built, tmp_path / "set")
    assert len(list((out / "train").iterdir())) < many and sorted(p.name for p in tmp_path.iterdir()) == ["set"]
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="is there and no export of ours"):
        exported(built, tmp_path / "mine")
    keep = type(built.recipe.export.keep)(where=["world_target_following > 10"])
    with pytest.raises(ValueError, match=r"no row to export \(40 not world_target_following > 10\)"):
        exported(built, tmp_path / "set", keep=keep)
    assert len(ids(out / "train")) > 10


def test_images_that_must_not_be_in_it_are_left_out(built: BuildFolder, tmp_path: Path) -> None:
    out, _ = exported(built, tmp_path / "set")
    (tmp_path / "unwanted").mkdir()
    row = next(row for row in read_rows([out / "train" / "00000.parquet"]) if row.improved)
    (tmp_path / "unwanted" / "x.png").write_bytes(row.improved)
    keep = type(built.recipe.export.keep)(exclude_similar_to=str(tmp_path / "unwanted"), distance=0)
    _, summary = exported(built, tmp_path / "clean", keep=keep)
    assert summary.dropped["looks like an unwanted image"] >= 1
    assert row.improved not in {row.improved for row in read_rows(sorted((tmp_path / "clean").rglob("*.parquet")))}
    with pytest.raises(ValueError, match="no folder with images"):
        exported(built, tmp_path / "none", keep=type(keep)(exclude_similar_to=str(tmp_path / "nowhere")))


RECORD = TrajectoryRecord("a cup", "plan", b"one", "<think> fix </think>", b"two")


@pytest.mark.parametrize(
    ("mode", "told"),
    [
        ("initial_thinking_understanding", "u:a cup i:one:read u t:plan:loss"),
        ("initial_thinking_generation", "u:a cup t:plan:loss"),
        ("initial_full", "u:a cup t:plan:loss i:one:loss"),
        ("improving_thinking_understanding", "u:a cup i:one:read i:two:read u t:<think> fix </think>:loss"),
        ("improving_thinking_generation", "u:a cup t:plan i:one:read t:<think> fix </think>:loss"),
        ("improving_full", "u:a cup t:plan i:one:read t:<think> fix </think>:loss i:two:loss"),
    ],
)
def test_the_authors_format(mode: Mode, told: str) -> None:
    words = []
    system, *turns = conversation(RECORD, mode)
    assert system == {"role": "user", "content": BAGEL_PROFILE.system_prompt}
    for number, turn in enumerate(turns):
        if turn["role"] == "user":
            words.append("u" if number else f"u:{turn['content']}")
            continue
        for part in turn["content"]:
            assert set(part) == {"type", "content", "need_loss", "need_vae", "need_vit"}
            text = part["content"] if part["type"] == "text" else base64.b64decode(part["content"]).decode()
            marks = ":loss" * part["need_loss"] + ":read" * (part["need_vae"] and part["need_vit"])
            words.append(f"{part['type'][0]}:{text}{marks}")
    assert " ".join(words) == told


def test_conversations_are_written_by_mode(built: BuildFolder, tmp_path: Path) -> None:
    out, _ = exported(built, tmp_path / "set", conversation=["initial_full", "improving_full"])
    texts = pq.read_table(out / "conversation" / "improving_full" / "train")["conversation"].to_pylist()
    two = sum(row.improved is not None for row in read_rows(sorted((out / "train").glob("*.parquet"))))
    assert len(texts) == two and all(json.loads(text)[2]["content"][-1]["need_loss"] for text in texts)
    with pytest.raises(ValueError, match=r"no mode 'initial_ful' \(did you mean 'initial_full'\?\)"):
        exported(built, tmp_path / "other", conversation=["initial_ful"])
    assert len(IRGL) == 6


def test_the_hub_gets_the_folder(built: BuildFolder, tmp_path: Path) -> None:
    """Through the real client of the hub, to a hub of our own."""
    hub_client = pytest.importorskip("huggingface_hub")
    out, _ = exported(built, tmp_path / "set", conversation=["initial_full"])
    with LocalHub() as hub:
        hub.files = {"train/00009.parquet": b"of a longer export", ".gitattributes": b"the hub's own"}
        api = hub_client.HfApi(endpoint=hub.url, token="none")
        assert push(out, "me/rows", api=api) == f"{hub.url}/datasets/me/rows"
        created = hub.log[0][1]
        assert (created["organization"], created["name"], created["type"]) == ("me", "rows", "dataset")
        assert created.get("visibility") == "private" or created.get("private") is True
        here = {file.relative_to(out).as_posix(): file.read_bytes() for file in out.rglob("*") if file.is_file()}
        assert {"README.md", "datasheet.md", "train/00000.parquet"} < set(here)
        assert hub.files == here | {".gitattributes": b"the hub's own"}  # and the longer export's shard is gone
    with LocalHub(refuse=403) as hub, pytest.raises(ValueError, match=r"me/rows: the hub refuses: .*403"):
        push(out, "me/rows", api=hub_client.HfApi(endpoint=hub.url, token="none"))
    with pytest.raises(ValueError, match="no export of ours"):
        push(tmp_path, "me/rows")


def test_what_was_tampered_with_is_found(built: BuildFolder, tmp_path: Path) -> None:
    out, _ = exported(built, tmp_path / "set")
    file = out / "train" / "00000.parquet"
    table = pq.read_table(file)
    rows = table.to_pylist()
    two = next(i for i, row in enumerate(rows) if row["improved"])
    one = next(i for i, row in enumerate(rows) if not row["improved"])
    rows[two]["prompt"] += "!"
    rows[one]["image"]["bytes"] = b"no picture"
    spoilt = next(i for i, row in enumerate(rows) if row["improved"] and i != two)
    rows[spoilt]["reflection"] = "Looks fine."
    rows[-1]["id"] = rows[0]["id"]
    pq.write_table(type(table).from_pylist(rows, table.schema), file)
    problems = "\n".join(validate(out).problems)
    assert f"row {two}: its digest is not that of its parts" in problems
    assert f"row {one}: image can't be decoded" in problems
    assert f"row {spoilt}: the reflection has no section" in problems and "stands here again" in problems
    file.write_bytes(b"PAR1 no")
    assert "can't be read" in validate(out).problems[0]


def test_the_page_needs_nothing_else(built: BuildFolder, tmp_path: Path) -> None:
    assert sample(built, 5, 0, tmp_path / "page.html") == 5
    page = (tmp_path / "page.html").read_text()
    assert page.count("<article") == 5 and page.count("data:image/png;base64,") >= 5 and "http" not in page
    assert "world_target_following" in page and "5 of 40 finished rows" in page
    assert page != (sample(built, 5, 1, tmp_path / "page.html"), (tmp_path / "page.html").read_text())[1]
    out, _ = exported(built, tmp_path / "set")
    assert sample_of_shards(out, 3, 0, tmp_path / "shards.html") == 3
    assert (tmp_path / "shards.html").read_text().count("<article") == 3
