"""Parts of recipes that somebody else registers: a source, drafts and a judge, through a whole build."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from irg import registry
from irg.curation.build import build
from irg.curation.build_folder import BuildFolder
from irg.curation.finished import records
from irg.curation.parts import Drafts, Parts, Prompt, Reflections, RowJudge, Source
from irg.curation.recipe import DataRecipe
from irg.curation.records import png
from irg.curation.resources import Resources
from irg.curation.stages import Outcome, Stage, accepted, score_columns
from irg.curation.store import Row
from irg.recipes import build as read


class ByRule(Stage):
    """Every row gets the same columns."""

    def __init__(self, config: Any, columns: dict[str, type], **values: Any) -> None:
        super().__init__(config)
        self.columns, self.values = columns, values

    async def make(self, rows: list[Row]) -> list[Outcome]:
        return [accepted(row, {"model": "rule"}, **self.values) for row in rows]


@dataclass(frozen=True)
class Boats(Source):
    kind: Literal["boats"]
    count: int = 2

    async def prompts(self, seed: int, resources: Resources) -> AsyncIterator[Prompt]:
        for number in range(self.count):
            yield Prompt(f"boat {number}", "boats", "CC0-1.0", turns=2)


@dataclass(frozen=True)
class GrayDrafts(Drafts):
    kind: Literal["gray"]
    level: int = 128

    def check(self, parts: Parts) -> None:
        if parts.strategy != "refine":
            raise ValueError("gray drafts need strategy: refine")

    def stage(self, parts: Parts) -> Stage:
        image = png(np.full((4, 4, 3), self.level, np.uint8))
        return ByRule(self, {"thinking": str, "image": bytes}, thinking="A boat.", image=image)


@dataclass(frozen=True)
class NoReflections(Reflections):
    kind: Literal["gray"]

    def stage(self, parts: Parts) -> Stage:
        return ByRule(self, {"text": str}, text="no column reflection")


@dataclass(frozen=True)
class GrayJudge(RowJudge):
    kind: Literal["gray"]
    name: str = "gray"

    def stage(self, parts: Parts) -> Stage:
        return ByRule(self, score_columns(self.name), gray_target_following=7.0)


class Point:
    """An entry point of an installed package."""

    def __init__(self, kind: type) -> None:
        self.name = self.value = kind.__name__
        self.kind = kind

    def load(self) -> type:
        return self.kind


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [Point(kind) for kind in (Boats, GrayDrafts, NoReflections, GrayJudge)]
    real = registry._found
    there = {point.name: point for point in points}
    monkeypatch.setattr(registry, "_found", lambda group: there if group == registry.DATA else real(group))


def recipe(out: Path, **more: Any) -> DataRecipe:
    plain = {
        "out": str(out),
        "prompts": {"sources": [{"kind": "boats", "count": 3}]},
        "filter": {"decontaminate": False, "near_duplicates": None},
        "draft": {"kind": "gray", "level": 7},
        "judges": [{"kind": "gray"}],
    }
    return read(DataRecipe, plain | more)


def test_parts_of_plug_ins_make_rows(tmp_path: Path) -> None:
    plan = recipe(tmp_path / "out")
    build(plan, log=lambda _: None)
    folder = BuildFolder.of(plan)
    assert [stage.name for stage in folder.stages] == ["draft", "judge-gray"]
    assert folder.stages[0].turns == (2,) and folder.stages[1].reads == ("draft", "target")
    rows = folder.stage_folders["draft"].read(0)
    assert len(rows) == 3 and {row["thinking"] for row in rows.values()} == {"A boat."}
    with pytest.raises(ValueError, match="the recipe needs the stages draft, reflect and target"):
        list(records(folder, 0))


def test_a_part_refuses_what_it_does_not_fit_into(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gray drafts need strategy: refine"):
        BuildFolder.of(recipe(tmp_path, strategy="independent"))


def test_a_stage_without_the_columns_of_its_role_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="reflect: the stage of kind gray makes no column reflection"):
        BuildFolder.of(recipe(tmp_path, reflect={"kind": "gray"}))


def test_a_judge_that_cannot_grade_is_no_judge_of_tries(tmp_path: Path) -> None:
    target = {"kind": "model", "judge": {"kind": "gray"}}
    with pytest.raises(ValueError, match="a judge of kind gray can't grade single images"):
        BuildFolder.of(recipe(tmp_path, target=target))


def test_kinds_are_told_apart_by_role(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"target\.kind: must be one of endpoint, diffusers, model, got 'gray'"):
        recipe(tmp_path, target={"kind": "gray"})
