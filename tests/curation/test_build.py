"""A whole build against the local server: what each stage makes, what is paid for, what stops it and what is kept."""

import errno
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

pytest.importorskip("openai")
pytest.importorskip("tenacity")

from faulty_server import FaultyServer
from teachers import recipe, recipe_dict, reply

from irg.curation import store
from irg.curation.build import build
from irg.curation.build_folder import BuildFolder
from irg.curation.content import content
from irg.curation.finished import RowFilter, records
from irg.curation.progress import progress_of, spent
from irg.curation.recipe import DataRecipe
from irg.deprecation import renamed
from irg.recipes import build as read
from irg.results.reflection import Reflection


def make(plan: DataRecipe, **options: Any) -> BuildFolder:
    build(plan, log=lambda _: None, **options)
    return BuildFolder.of(plan)


def finished(folder: BuildFolder) -> list[Any]:
    return [record for block in folder.blocks() for record in records(folder, block)]


def asked(server: FaultyServer) -> Counter[str]:
    return Counter(path for _, path, _ in server.log)


def test_every_stage_does_its_part(tmp_path: Path) -> None:
    told: Counter[str] = Counter()

    def tell(stage: str, made: int, rejected: int, cost: float) -> None:
        told[stage] += made

    with FaultyServer(reply) as server:
        folder = make(recipe(server.url, tmp_path / "out", 10), progress=tell)
    rows = finished(folder)
    two = [row for row in rows if row.improved is not None]
    assert len(rows) > 5 and 0 < len(two) < len(rows) and told["prompts"] == 10
    for row in two:
        assert Reflection.parse(row.reflection).final_prompt.startswith(row.prompt)
        how = json.loads(row.provenance)
        assert how["reflect"]["model"] == "vlm" and how["target"]["call"] == "edit"
        scores = {name.removeprefix("vlm_"): score for name, score in row.scores.items()}
        gain = (
            scores["target_following"] + scores["target_quality"] - scores["draft_following"] - scores["draft_quality"]
        )
        assert (scores["gain_1"] + scores["gain_2"]) / 2 == pytest.approx(gain)
        assert row.cost >= 0.1 + 0.5 + 0.2  # a reflection, an image, two judgements
    for row in rows:
        if row.improved is None:
            assert row.thinking.startswith("<think> First a plan for") and row.scores["vlm_gain_1"] is None
            assert json.loads(row.provenance)["target"]["call"] == "generation"
    assert len({row.id for row in rows}) == len(rows)
    states = {state.name: state for state in progress_of(folder)}
    assert list(states) == ["draft", "reflect", "target", "think", "judge-vlm"]
    assert all(state.pending == 0 for state in states.values())
    assert sum(state.cost for state in states.values()) <= spent(folder) + 1e-9
    assert not list((tmp_path / "out" / "stages").rglob("*.p0*")) and not list(tmp_path.rglob(".tmp-*"))


def test_the_edit_is_told_what_to_change_and_shown_the_draft(tmp_path: Path) -> None:
    with FaultyServer(reply) as server:
        folder = make(recipe(server.url, tmp_path / "out", 4))
        edits = [body for body in server.bodies if "image" in body]
    drafts = {row["image"] for block in folder.blocks() for row in folder.stage_folders["draft"].read(block).values()}
    assert edits and {body["image"] for body in edits} <= drafts
    assert all("clouds. keep the rest; change it. The result: " in body["prompt"] for body in edits)


def test_the_papers_way_compares_two_images(tmp_path: Path) -> None:
    with FaultyServer(reply) as server:
        plan = recipe(server.url, tmp_path / "out", 4)
        endpoint = plan.target.endpoint
        target = type(plan.target)("endpoint", endpoint, edit=False, width=32, height=32)
        folder = make(DataRecipe(**{**vars(plan), "strategy": "independent", "target": target}))
        reflections = [body for body in server.bodies if "messages" in body and "two pictures" in str(body)]
        assert reflections and not [body for body in server.bodies if "image" in body]
        assert all(str(body["messages"][0]).count("image_url") == 4 for body in reflections)
    assert [stage.name for stage in folder.stages][:3] == ["draft", "target", "reflect"]
    assert folder.stages[1].reads == () and any(row.improved for row in finished(folder))
    with pytest.raises(ValueError, match=r"set target\.edit to false"):
        BuildFolder.of(DataRecipe(**{**vars(plan), "strategy": "independent"}))


def test_nothing_is_done_twice(tmp_path: Path) -> None:
    with FaultyServer(reply) as server:
        plan = recipe(server.url, tmp_path / "out", 8)
        folder = make(plan)
        calls, rows = len(server.log), finished(folder)
        make(plan)
        assert len(server.log) == calls
        for file in folder.stage_folders["target"].path.glob("*.parquet"):  # lost shards come back without paying
            file.unlink()
        make(plan)
        assert len(server.log) == calls
        assert [(r.id, r.digest) for r in finished(folder)] == [(r.id, r.digest) for r in rows]


def test_a_changed_late_stage_redoes_only_itself(tmp_path: Path) -> None:
    with FaultyServer(reply) as server:
        plan = recipe(server.url, tmp_path / "out", 8)
        folder = make(plan)
        before = {name: sorted(f.path.rglob("*.parquet")) for name, f in folder.stage_folders.items()}
        server.log.clear()
        judge = type(plan.judges[0])("endpoint", plan.judges[0].endpoint, "vlm", temperature=0.5)
        changed = DataRecipe(**{**vars(plan), "judges": [judge]})
        with pytest.raises(
            ValueError, match=r"judge-vlm: its settings .* rows that cost \d.* would be made again; give"
        ):
            build(changed)
        assert not server.log
        after = make(changed, redo=True)
        assert set(asked(server)) == {"chat/completions"}
        assert after.keys["judge-vlm"] != folder.keys["judge-vlm"]
        assert {n: k for n, k in after.keys.items() if n != "judge-vlm"} == {
            n: k for n, k in folder.keys.items() if n != "judge-vlm"
        }
        assert {name: sorted(f.path.rglob("*.parquet")) for name, f in folder.stage_folders.items()} == before


def test_other_prompts_do_not_silently_replace_what_was_paid_for(tmp_path: Path) -> None:
    with FaultyServer(reply) as server:
        make(recipe(server.url, tmp_path / "out", 6))
        calls = len(server.log)
        for _ in range(2):  # the refusal itself changes nothing
            with pytest.raises(ValueError, match=r"prompts: they have changed .* results that cost \d.*give --redo"):
                build(recipe(server.url, tmp_path / "out", 6, seed=1))
        assert len(server.log) == calls
        longer = make(recipe(server.url, tmp_path / "out", 9))  # six of them are the same
        assert len(longer.accepted(0)) >= 3 and len(server.log) > calls
        make(recipe(server.url, tmp_path / "out", 6, seed=1), redo=True)
    (tmp_path / "out" / "state.json").write_text("{")
    with pytest.raises(ValueError, match=r"state\.json: damaged"):
        build(recipe(server.url, tmp_path / "out", 6, seed=1))


def test_pace_and_prices_are_no_content(tmp_path: Path) -> None:
    plan = recipe("http://x/v1", tmp_path, 4)
    slow = recipe("http://elsewhere/v1", tmp_path, 4, processes=2, budget=3.0, concurrent_blocks=1)
    assert BuildFolder.of(plan).keys == BuildFolder.of(slow).keys  # the endpoints say who they are


def test_the_budget_stops_the_build_and_more_lets_it_go_on(tmp_path: Path) -> None:
    with FaultyServer(reply) as server:
        with pytest.raises(
            ValueError, match=r"the budget of 2 is used up .* What is made is kept; build again to go on"
        ):
            build(recipe(server.url, tmp_path / "out", 10, budget=2.0))
        poor = BuildFolder.of(recipe(server.url, tmp_path / "out", 10))
        assert 1.0 < spent(poor) <= 2.5
        made = server.answered()
        whole = make(recipe(server.url, tmp_path / "out", 10, budget=1000.0))
        assert len(finished(whole)) > 5 and all(count == 1 for key, count in server.answered().items() if key in made)


def test_a_refusal_rejects_the_row_and_a_missing_model_stops_the_build(tmp_path: Path) -> None:
    refused: list[str] = []

    def one(key: str) -> tuple[str, ...]:
        if not refused:
            refused.append(key)
        return ("400 content_policy_violation",) if key in refused else ()

    with FaultyServer(reply, faults=one) as server:
        folder = make(recipe(server.url, tmp_path / "one", 8))
        (state,) = (state for state in progress_of(folder) if state.reasons.get("refused"))
        assert state.reasons["refused"] == 1
        why = [
            r["rejected"]
            for b in folder.blocks()
            for r in folder.stage_folders[state.name].read(b).values()
            if r["rejected"]
        ]
        assert any("refuses: HTTP 400" in reason for reason in why)
    with FaultyServer(reply, faults=lambda key: ("404",) * 99) as server:
        with pytest.raises(ValueError, match=r"refuses: HTTP 404.*build again to go on"):
            build(recipe(server.url, tmp_path / "two", 8), log=lambda _: None)
        lost = BuildFolder.of(recipe(server.url, tmp_path / "two", 8))
        assert any(lost.stage_folders["draft"].of_block(block) for block in lost.blocks())


def test_nobody_home_is_said_once(tmp_path: Path) -> None:
    plan = recipe("http://127.0.0.1:9/v1", tmp_path / "out", 30)
    with pytest.raises(ValueError, match=r"(reflect|target): http://127\.0\.0\.1:9/v1: .*\(8 attempts\)"):
        build(plan)


def test_a_damaged_shard_is_named_and_comes_back(tmp_path: Path) -> None:
    with FaultyServer(reply) as server:
        plan = recipe(server.url, tmp_path / "out", 8)
        folder = make(plan)
        rows, calls = finished(folder), len(server.log)
        victim = folder.stage_folders["reflect"].of_block(0)[0]
        flipped = bytearray(victim.read_bytes())
        flipped[300] ^= 1
        for broken in (flipped, flipped[:100]):
            victim.write_bytes(broken)
            with pytest.raises(
                ValueError, match=r"reflect-\w{8}/00000\.parquet: damaged .*delete this file and build again"
            ):
                build(plan)
        victim.unlink()
        make(plan)
        assert [row.digest for row in finished(folder)] == [row.digest for row in rows] and len(server.log) == calls


def test_a_full_disk_ends_the_build_and_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, left = pq.write_table, [9]

    def write(table: Any, where: Any, **options: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            Path(where).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(table, where, **options)

    with FaultyServer(reply) as server:
        plan = recipe(server.url, tmp_path / "out", 8)
        monkeypatch.setattr(store.pq, "write_table", write)
        with pytest.raises(OSError, match="No space left on device") as caught:
            build(plan)
        assert caught.value.errno == errno.ENOSPC and str(caught.value.filename).endswith(".parquet")
        assert not list(tmp_path.rglob(".tmp-*"))
        monkeypatch.setattr(store.pq, "write_table", real)
        assert len(finished(make(plan))) > 4
        assert max(server.answered().values()) == 1


def test_a_recipe_must_fit_together(tmp_path: Path) -> None:
    def folder(**changes: Any) -> None:
        BuildFolder.of(recipe("http://x/v1", tmp_path, **changes))

    world = {"sprites": "builtin"}
    with pytest.raises(ValueError, match="reflect needs draft"):
        folder(draft=None)
    with pytest.raises(ValueError, match=r"set reflect\.detector \(such as label-detector\)"):
        folder(draft={"kind": "model"}, reflect={"kind": "miniworld", **world})
    with pytest.raises(ValueError, match=r"needs reflect\.kind miniworld"):
        folder(target={"kind": "miniworld", **world})
    with pytest.raises(ValueError, match=r"judges: each needs a name of its own.*'a b'"):
        folder(judges=[{"kind": "miniworld", "name": "a b"}])
    with pytest.raises(
        ValueError, match=r"draft\.kind: must be one of model, miniworld, got 'modle' \(did you mean 'model'"
    ):
        folder(draft={"kind": "modle"})
    with pytest.raises(ValueError, match=r"target\.endpoint\.url: missing"):
        folder(target={"kind": "endpoint", "endpoint": {"model": "m"}})


def test_thresholds_change_what_is_exported_and_nothing_else(tmp_path: Path) -> None:
    with FaultyServer(reply) as server:
        plan = recipe(server.url, tmp_path / "out", 12)
        folder = make(plan)
        rows = finished(folder)

        def reasons(**keep: Any) -> Counter[str | None]:
            fields = {**vars(plan.export), "keep": type(plan.export.keep)(**{"gain": -20.0, **keep})}
            changed = DataRecipe(**{**vars(plan), "export": type(plan.export)(**fields)})
            gate = RowFilter.of(BuildFolder.of(changed))
            return Counter(gate.rejects(row) for row in rows)

        assert reasons() == {None: len(rows)}
        strict = reasons(quality=9.0)
        assert strict["vlm: quality below 9"] > 0
        assert reasons(gain=1.9)["vlm: no improvement"] > 0
        assert reasons(where=["vlm_preservation > 9"])["not vlm_preservation > 9"] == sum(
            r.improved is not None for r in rows
        )
        with pytest.raises(ValueError, match=r"no judgement 'vlm_qualty'.*there are"):
            reasons(where=["vlm_qualty > 9"])
        with pytest.raises(ValueError, match="should be like"):
            reasons(where=["vlm_target_quality is good"])
        with pytest.raises(ValueError, match="set hashes: true"):
            reasons(exclude_similar_to=str(tmp_path))


def test_old_names_of_recipe_fields_keep_working(tmp_path: Path) -> None:
    new = recipe_dict("http://x/v1", tmp_path, strategy="independent", concurrent_blocks=3)
    new["target"] |= {"edit": False}
    old = {name: value for name, value in new.items() if name not in ("strategy", "concurrent_blocks", "filter")}
    old |= {"way": "independent", "blocks_at_once": 3, "sift": {"compare": False, "near": None}}
    with pytest.warns(DeprecationWarning, match="sift is now called filter"):
        assert read(DataRecipe, old) == read(DataRecipe, new)


def test_a_renamed_field_changes_no_key() -> None:
    """A build that was begun under the old name finds its rows."""

    @dataclass(frozen=True)
    class Before:
        slips: float = 0.5

    @dataclass(frozen=True)
    class After:
        near_misses: float = renamed(was="slips", default=0.5)

    assert content(After()) == content(Before()) == {"slips": 0.5}


def test_neither_the_block_size_nor_earlier_prompts_make_rows_again(tmp_path: Path) -> None:
    """Blocks stay what they were: rows that are there are found, whatever the recipe says of blocks or puts before."""

    def plan(prompts: list[str], **more: Any) -> DataRecipe:
        (tmp_path / "prompts.txt").write_text("\n".join(prompts))
        data = recipe_dict(server.url, tmp_path / "out", **more)
        data["prompts"] = {"sources": [{"kind": "file", "path": str(tmp_path / "prompts.txt")}], "first_turns": 1.0}
        return read(DataRecipe, data | {"draft": None, "reflect": None})

    with FaultyServer(reply) as server:
        texts = [f"a boat with {number} sails" for number in range(9)]
        whole = make(plan(texts))
        rows, calls = finished(whole), len(server.log)
        assert len(rows) > 5
        again = make(plan(texts, rows_per_block=7))
        assert len(server.log) == calls and [row.digest for row in finished(again)] == [row.digest for row in rows]
        kept = {row.prompt: row.digest for row in rows} | {texts[0]: None}
        shifted = make(plan(["a new one", *texts[1:]], rows_per_block=7), redo=True)
        after = {row.prompt: row.digest for row in finished(shifted)}
        assert {text: digest for text, digest in after.items() if text in texts} == {
            text: digest for text, digest in kept.items() if digest
        }
        new = {key for key, path, _ in server.log[calls:]}
        assert 0 < len(new) <= 8  # of the one new row


def test_a_field_that_the_teacher_does_not_take_stops_the_build_and_rejects_nothing(tmp_path: Path) -> None:
    with FaultyServer(reply, faults=lambda key: ("400",) * 9) as server:
        with pytest.raises(ValueError, match="were all refused like this"):
            build(recipe(server.url, tmp_path / "out", 30, concurrent_blocks=1, rows_per_block=30), log=lambda _: None)
        assert len(server.log) < 25
    with FaultyServer(reply) as server:
        whole = make(recipe(server.url, tmp_path / "out", 30, concurrent_blocks=1, rows_per_block=30))
    assert not [state for state in progress_of(whole) if state.reasons.get("refused")]


def test_estimates_count_what_rejected_rows_have_cost(tmp_path: Path) -> None:
    with FaultyServer(lambda path, body: reply(path, body) if "images" in path else "no form at all") as server:
        folder = make(recipe(server.url, tmp_path / "out", 8))
    for state in progress_of(folder):
        if state.reasons.get("bad_answer"):
            assert state.cost > 0 and state.measured
            break
    else:
        raise AssertionError("no row was rejected for its answer")
    assert sum(state.cost for state in progress_of(folder)) == pytest.approx(spent(folder))


def test_what_can_not_be_exported_is_told_before_anything_is_made(tmp_path: Path) -> None:
    told: list[str] = []
    with FaultyServer(reply) as server:
        plan = recipe(server.url, tmp_path / "out", 4, reflect=None)
        build(plan, log=told.append)
    assert any("rows of 2 turns lack the stage reflect" in line for line in told)
    with pytest.raises(ValueError, match="conversation: no mode 'foo'"):
        recipe("http://x/v1", tmp_path / "out", 4, export={"conversation": ["foo"]})
