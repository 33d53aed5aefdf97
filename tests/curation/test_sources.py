"""Prompts: user files, hub sets, the taxonomy by grammar and by a model."""

import asyncio
import json
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from irg.curation import prompt_rows, taxonomy
from irg.curation.build import build
from irg.curation.build_folder import BuildFolder
from irg.curation.recipe import DataRecipe
from irg.curation.taxonomy import TaxonomySource
from irg.recipes import build as read


def rows(tmp_path: Path, *found: dict[str, Any], **prompts: Any) -> list[dict[str, Any]]:
    recipe = {"out": str(tmp_path / "out"), "prompts": {"sources": list(found), **prompts}}
    plan = read(DataRecipe, recipe | {"filter": {"decontaminate": False, "near_duplicates": None}, "rows_per_block": 3})
    build(plan, log=lambda _: None)
    folder = BuildFolder.of(plan)
    return [row for block in folder.blocks() for row in folder.prompts.read(block).values()]


def test_files_of_every_kind(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a boat\n\n  a   red car \n")
    (tmp_path / "b.jsonl").write_text('{"prompt": "a cat", "x": 1}\n{"prompt": "a boat"}\n')
    (tmp_path / "c.csv").write_text('id,text\n1,"a dog, asleep"\n')
    pq.write_table(pa.table({"caption": ["a hen"]}), tmp_path / "d.parquet")
    found = rows(
        tmp_path,
        {"kind": "file", "path": str(tmp_path / "a.txt"), "license": "CC0-1.0", "name": "ours"},
        {"kind": "file", "path": str(tmp_path / "b.jsonl")},
        {"kind": "file", "path": str(tmp_path / "c.csv"), "column": "text"},
        {"kind": "file", "path": str(tmp_path / "d.parquet"), "column": "caption"},
    )
    assert [row["prompt"] for row in found] == ["a boat", "a red car", "a cat", "a dog, asleep", "a hen"]  # one boat
    assert (found[0]["source"], found[0]["license"], found[2]["source"]) == ("ours", "CC0-1.0", "b.jsonl")
    assert len({row["id"] for row in found}) == 5 and all(len(row["id"]) == 32 for row in found)


@pytest.mark.parametrize(
    ("name", "text"), [("x.txt", "a cat\n"), ("x.jsonl", '{"prompt": "a cat"}\n'), ("x.csv", "prompt\na cat\n")]
)
def test_a_byte_order_mark_is_no_part_of_a_prompt(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    (row,) = rows(tmp_path, {"kind": "file", "path": str(tmp_path / name)})
    assert row["prompt"] == "a cat"


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("x.jsonl", '{"prompt": "a"}\n{broken', r"x\.jsonl, line 2: no JSON"),
        ("x.jsonl", '{"text": "a"}', r"x\.jsonl, line 1: no text in 'prompt' \(it has text\)"),
        ("x.csv", "a,b\n1,2\n", r"x\.csv, line 2: no text in 'prompt' \(it has a, b\)"),
        ("x.parquet", "no", r"x\.parquet: no parquet file"),
        ("x.txt", "a" * 100_001, r"x\.txt, line 1: the prompt has 100,001 bytes"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, text: str, told: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=told):
        rows(tmp_path, {"kind": "file", "path": str(tmp_path / name)})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.txt: No such file"):
        rows(tmp_path, {"kind": "file", "path": str(tmp_path / "none.txt")})


def test_hub_sets_keep_their_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "snapshots" / "0123456789abcdef" / "p.txt"
    file.parent.mkdir(parents=True)
    file.write_text("a boat\na car\n")
    asked: list[Any] = []

    def download(*words: Any, **options: Any) -> str:
        asked.append((words, options))
        return str(file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    (only,) = rows(tmp_path, {"kind": "hub", "repo": "some/prompts", "file": "p.txt", "license": "MIT", "limit": 1})
    assert only["source"] == "some/prompts@0123456789ab" and only["license"] == "MIT"
    assert asked == [(("some/prompts", "p.txt"), {"repo_type": "dataset", "revision": "main"})]
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda *a, **k: (_ for _ in ()).throw(OSError("no network"))
    )
    with pytest.raises(ValueError, match=r"other/prompts/p\.txt at main: no network"):
        rows(tmp_path, {"kind": "hub", "repo": "other/prompts", "file": "p.txt"})


def test_quotas_are_met_by_the_grammar(tmp_path: Path) -> None:
    quotas = dict.fromkeys(taxonomy.categories(), 30)
    names = "objects counts colors relations attributes style text culture time space nature long"
    assert sorted(quotas) == sorted(names.split())
    found = rows(tmp_path, {"kind": "taxonomy", "quotas": quotas})
    assert len(found) == 360 and {row["source"] for row in found} == {f"taxonomy/{name}" for name in quotas}
    for row in found:
        assert "{" not in row["prompt"] and "  " not in row["prompt"]
        assert not any(f" a {vowel}" in row["prompt"] for vowel in ("apple", "owl", "igloo", "elephant", "orange"))
    assert found == rows(tmp_path, {"kind": "taxonomy", "quotas": quotas})


def test_words_are_inflected() -> None:
    nouns = ["mug", "box", "peach", "daisy", "sheep", "grey wolf", "tomato", "key", "glass jar"]
    many = ["mugs", "boxes", "peaches", "daisies", "sheep", "grey wolves", "tomatoes", "keys", "glass jars"]
    assert [taxonomy.plural(noun) for noun in nouns] == many
    said = taxonomy.sentence("long", np.random.default_rng(0))
    assert said[0].isupper() and said.endswith(".")


def test_mistaken_quotas(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"quotas\.colrs: no such category \(did you mean 'colors'\?\)"):
        rows(tmp_path, {"kind": "taxonomy", "quotas": {"colrs": 3}})
    with pytest.warns(DeprecationWarning, match=r"quotas\.colours is now called colors"):
        assert TaxonomySource("taxonomy", {"colours": 3}).quotas == {"colors": 3}
    with pytest.raises(ValueError, match=r"the grammar runs dry after [\d,]+ prompts"):
        list(taxonomy.by_grammar(TaxonomySource("taxonomy", {"culture": 5000}), 0))


def test_a_model_expands_the_taxonomy(tmp_path: Path) -> None:
    pytest.importorskip("openai")
    from faulty_server import FaultyServer

    calls = []

    def reply(path: str, body: dict[str, Any]) -> str:
        calls.append(body["messages"][0]["content"])
        return json.dumps([f"prompt {len(calls)}.{i}" for i in range(4)] + ["the same again"])

    with FaultyServer(reply) as server:
        endpoint = {"url": server.url, "model": "writer", "timeout_s": 5.0}
        source = {"kind": "taxonomy", "quotas": {"colors": 7, "text": 2}, "endpoint": endpoint, "prompts_per_call": 5}
        found = rows(tmp_path, source)
        assert len(found) == 9 and found[0]["source"] == "taxonomy/colors by writer"
        assert len({row["prompt"] for row in found}) == 9 and len(calls) == 3
        assert 'category "colors"' in calls[0] and calls[0].count("\n- ") == 5
        again = rows(tmp_path, source)
        assert again == found and len(calls) == len(server.log)


def test_a_share_of_prompts_gets_one_turn(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(f"thing number {i}" for i in range(400)))
    found = rows(tmp_path, {"kind": "file", "path": str(tmp_path / "a.txt")}, first_turns=0.25)
    assert 70 < sum(row["turns"] == 1 for row in found) < 130


def test_rows_come_in_the_same_order_whoever_asks() -> None:
    async def ids(plan: DataRecipe) -> list[str]:
        return [row["id"] async for row in prompt_rows.prompt_rows(plan, None)]  # type: ignore[arg-type]

    source = {"kind": "miniworld", "rows": 20, "sprites": "builtin"}
    plan = read(DataRecipe, {"out": "x", "prompts": {"sources": [source], "repeats": True}})
    first = asyncio.run(ids(plan))
    assert first == asyncio.run(ids(plan)) and len(set(first)) == 20


def test_rows_without_a_prompt_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.csv").write_text('id,prompt\n1,a cat\n2,\n3,"  "\n4\n5,a dog\n')
    (tmp_path / "b.jsonl").write_text('{"prompt": null}\n{"prompt": "a hen"}\n{"prompt": "a \\ud83d half"}\n')
    pq.write_table(pa.table({"prompt": [None, "a cow", ""]}), tmp_path / "c.parquet")
    found = rows(
        tmp_path, *({"kind": "file", "path": str(tmp_path / name)} for name in ("a.csv", "b.jsonl", "c.parquet"))
    )
    assert [row["prompt"] for row in found] == ["a cat", "a dog", "a hen", "a cow"]
    told = "\n".join(record.getMessage() for record in caplog.records)
    assert "a.csv: 3 rows" in told and "a.csv, line 3" in told and "b.jsonl: 2 rows" in told and "c.parquet: 2" in told


def test_json_that_is_nested_too_deep_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a":' * 200_000)
    with pytest.raises(ValueError, match=r"a\.jsonl, line 1: no JSON"):
        rows(tmp_path, {"kind": "file", "path": str(tmp_path / "a.jsonl")})
