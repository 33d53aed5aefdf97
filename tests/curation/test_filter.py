"""What the filter leaves out: near-duplicates, words, scripts, and what benchmarks ask."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("datasketch")

from irg import promptsets
from irg.curation import decontaminate, prompt_rows
from irg.curation.build import build
from irg.curation.build_folder import BuildFolder
from irg.curation.decontaminate import Decontaminator, Neighbors, normalized, template_key
from irg.curation.filter import PromptFilter, in_script
from irg.curation.recipe import DataRecipe, Filter
from irg.recipes import build as read


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a photo of a bench", "A picture of the bench."),
        ("a photo of a dog right of a tie", "an image of a tie to the left of a dog"),
        ("a photo of two clocks", "2 clocks"),
        ("a photo of a red apple and a green dog", "Draw a photo of the green dog and the red apple"),
        ("a photo of a cup above a tv", "a tv below a cup"),
        ("a photo of three knives", "3 knife"),
        ("a photo of four sandwiches", "four sandwich"),
    ],
)
def test_one_template_filled_alike(one: str, other: str) -> None:
    assert template_key(one) == template_key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a photo of a red apple and a green dog", "a photo of a green apple and a red dog"),
        ("a photo of a dog right of a tie", "a photo of a tie right of a dog"),
        ("a photo of two clocks", "a photo of three clocks"),
        ("a photo of a glass", "a photo of a grass"),
    ],
)
def test_and_filled_otherwise(one: str, other: str) -> None:
    assert template_key(one) != template_key(other)


@given(st.text(max_size=80))
def test_any_text_can_be_compared(text: str) -> None:
    assert normalized(normalized(text)) == normalized(text)
    assert isinstance(template_key(text), str) and decontaminate.grams(text)


def test_neighbors_are_found_by_what_they_share() -> None:
    near = Neighbors()
    near.add("a", "A lighthouse on a rocky island in a thunderstorm, oil painting")
    near.add("b", "Seven red balloons above the roofs of an old town")
    index, overlap = near.nearest("a lighthouse on a rocky island in a thunderstorm; an oil painting", 0.7) or (9, 0)
    assert near.names[index] == "a" and 0.7 < overlap < 1
    assert near.nearest("A lighthouse on a sandy beach at noon", 0.7) is None
    assert near.nearest("Seven red balloons above the roofs of an old town", 0.7) == (1, 1.0)


def known() -> Decontaminator:
    benchmarks = Decontaminator(0.7, True)
    benchmarks.learn("geneval", [("00001", "a photo of a red bus and a green dog")])
    benchmarks.learn("wise", [("7", "The plant that is most often given as a gift on the second Sunday of May")])
    return benchmarks


def test_contamination_is_found_in_three_ways() -> None:
    check = known().check
    assert (hit := check("A photo of a red bus and a green dog!")) and (hit.how, hit.prompt_id) == ("exact", "00001")
    assert (hit := check("picture of the green dog and the red bus")) is None or hit.how == "template"
    assert (hit := check("a picture of the green dog and the red bus")) and hit.how == "template"
    near = check("The plant that is very often given as a gift on the second Sunday of May")
    assert near is not None and (near.how, near.benchmark) == ("near", "wise")
    assert check("a photo of a blue bus and a green dog") is None


def prompts_file(folder: Path, *prompts: str) -> str:
    path = folder / "prompts.txt"
    path.write_text("\n".join(prompts), encoding="utf-8")
    return str(path)


def recipe(tmp_path: Path, *prompts: str, **settings: object) -> DataRecipe:
    source = {"kind": "file", "path": prompts_file(tmp_path, *prompts), "license": "CC0-1.0"}
    return read(DataRecipe, {"out": str(tmp_path / "out"), "prompts": {"sources": [source]}, "filter": settings})


def test_without_the_files_it_refuses_to_certify_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IRG_CACHE", str(tmp_path / "empty"))
    said: list[str] = []
    build(recipe(tmp_path, "a boat"), log=said.append)
    assert said and "NOT certified clean: no files of geneval, wise" in said[0]
    report = json.loads((tmp_path / "out" / "decontamination.json").read_text())
    assert report["certified"] is False and set(report["not_compared_with"]) == set(promptsets.NAMES)
    assert "**Not certified**" in (tmp_path / "out" / "decontamination.md").read_text()


def test_the_report_counts_and_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = known()
    full.found = dict.fromkeys(promptsets.NAMES, "original 0123")
    monkeypatch.setattr(decontaminate, "load", lambda settings: full)
    said: list[str] = []
    prompts = (
        "a boat",
        "A boat!",
        "a red kite",
        "a photo of a green dog and a red bus",
        "un bateau rouge",
        "Лодка на реке",
    )
    words = tmp_path / "words.txt"
    words.write_text("kite\n\n")
    plan = recipe(tmp_path, *prompts, script="latin", blocklist=str(words))
    build(plan, log=said.append)
    assert not said
    folder = BuildFolder.of(plan)
    reasons = [row["rejected"] for row in folder.filtered.read(0).values()]
    assert reasons[0] is None and reasons[1].startswith("near-duplicate of ") and reasons[2] == "blocked: kite"
    assert reasons[3].startswith("benchmark: geneval 00001 (template)")
    assert reasons[4] is None and reasons[5] == "script: not in latin letters"
    report = json.loads((tmp_path / "out" / "decontamination.json").read_text())
    assert report["certified"] and report["taken_out"] == {"geneval": {"template": 1}}
    assert report["examples"]["geneval"][0]["benchmark_prompt"] == "a photo of a red bus and a green dog"
    assert folder.accepted(0) == [name for name, row in folder.filtered.read(0).items() if row["rejected"] is None]


def test_samples_of_a_prompt_are_no_duplicates_of_each_other(tmp_path: Path) -> None:
    plan = recipe(tmp_path, "a boat", "a boat", "another thing", decontaminate=False)
    plan = DataRecipe(**{**vars(plan), "prompts": type(plan.prompts)(plan.prompts.sources, samples=3)})
    build(plan)
    folder = BuildFolder.of(plan)
    assert len(folder.accepted(0)) == 6 and len(folder.prompts.read(0)) == 6
    assert len({row["seed"] for row in folder.prompts.read(0).values()}) == 6


def test_a_changed_filter_is_another_filter_and_no_other_prompts(tmp_path: Path) -> None:
    one, two = (
        BuildFolder.of(recipe(tmp_path, "a boat", decontaminate=False, near_duplicates=near)) for near in (0.8, 0.9)
    )
    assert one.keys["prompts"] == two.keys["prompts"] and one.keys["filter"] != two.keys["filter"]


def test_scripts() -> None:
    assert in_script("Ein Bär, zwei Äpfel 3", "latin") and not in_script("два медведя", "latin")
    assert in_script("два медведя", "cyrillic") and in_script("123 !", "latin")


def test_mistakes_name_the_field(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"filter\.blocklist: .*none\.txt: No such file"):
        PromptFilter(Filter(decontaminate=False, blocklist=str(tmp_path / "none.txt")))
    with pytest.raises(ValueError, match="near_duplicates must be between 0 and 1"):
        Filter(near_duplicates=8.0)


@pytest.mark.shared
def test_the_benchmarks_own_prompts_are_all_taken_out(official: Path) -> None:
    found = decontaminate.load(Filter(benchmarks=str(official)))
    assert found.certified, found.missing
    geneval = promptsets.load("geneval", official)
    assert all(found.check(prompt.text) for prompt in geneval.prompts[:50])
    tiif = promptsets.load("tiif", official)
    assert all(found.check(prompt.text) for prompt in tiif.prompts[:20])
    assert found.check("A beekeeper repairs a bronze telescope inside a greenhouse full of parrots") is None


def test_a_files_content_counts_and_not_its_name(tmp_path: Path) -> None:
    one = prompt_rows.key(recipe(tmp_path, "a boat"))
    (tmp_path / "elsewhere").mkdir()
    assert prompt_rows.key(recipe(tmp_path / "elsewhere", "a boat")) == one
    assert prompt_rows.key(recipe(tmp_path, "a boat", "a car")) != one
