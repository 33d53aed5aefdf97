"""The bundled model for drafts and for targets, the best of its tries; its drafts seen, reflected on and mended."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from irg.curation import diffusers_stages
from irg.curation.build import build
from irg.curation.build_folder import BuildFolder
from irg.curation.finished import records
from irg.curation.recipe import DataRecipe
from irg.curation.resources import Resources
from irg.recipes import build as read
from irg_mini import world

QUICK = {"num_timesteps": 3, "max_think_tokens": 60}
WORLD = {"kind": "miniworld", "sprites": "builtin", "detector": "label-detector"}


def recipe(out: Path, target: dict[str, Any]) -> DataRecipe:
    return read(
        DataRecipe,
        {
            "out": str(out),
            "prompts": {
                "sources": [{"kind": "miniworld", "rows": 3, "repairs": 1.0, "sprites": "builtin"}],
                "repeats": True,
            },
            "filter": {"decontaminate": False, "near_duplicates": None},
            "draft": {"kind": "model", "model": "mini", "batch_size": 2, "options": QUICK},
            "reflect": WORLD,
            "target": target,
            "judges": [{**WORLD, "name": "world"}],
        },
    )


def rows(plan: DataRecipe) -> list[Any]:
    build(plan, log=lambda _: None)
    folder = BuildFolder.of(plan)
    return [record for block in folder.blocks() for record in records(folder, block)]


def test_a_models_drafts_are_seen_reflected_on_and_mended(tmp_path: Path) -> None:
    found = rows(recipe(tmp_path / "out", {"kind": "miniworld", "sprites": "builtin"}))
    assert len(found) == 3
    for row in found:
        scene = world.parse_layout(world.parse_reflection(row.reflection).final_prompt)
        assert world.satisfied(world.Request.from_json(json.loads(row.request)), world.see(scene, 96))
        how = json.loads(row.provenance)
        assert how["draft"]["model"] == "mini" and how["draft"]["seed"] == row.seed
        assert (
            how["draft"]["settings"]["initial"]["num_timesteps"] == 3 and how["reflect"]["detector"] == "label-detector"
        )


def test_the_best_of_a_models_tries_is_the_target(tmp_path: Path) -> None:
    target = {"kind": "model", "model": "mini", "best_of": 3, "batch_size": 6, "options": QUICK, "judge": WORLD}
    folder = None
    for row in rows(plan := recipe(tmp_path / "out", target)):
        grades = json.loads(row.texts["tries"])
        how = json.loads(row.provenance)["target"]
        seeds = [(row.seed + 1 + 7919 * k) % 2**31 for k in range(3)]
        assert len(grades) == 3 and seeds.index(how["seed"]) == int(np.argmax([sum(grade) for grade in grades]))
        folder = BuildFolder.of(plan)
    assert folder is not None and folder.stage_folders["target"].columns["tries"] is str


def test_a_diffusers_pipeline_gets_prompt_image_and_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    from irg.curation.records import png

    calls: list[dict[str, Any]] = []

    def pipe(**options: Any) -> Any:
        calls.append(options)
        return type("Output", (), {"images": [Image.new("RGB", (8, 8), "red")]})()

    monkeypatch.setattr(diffusers_stages, "load_diffusers", lambda config: pipe)
    row = {"id": "a", "prompt": "a cup", "turns": 2, "seed": 5, "image": png(np.zeros((8, 8, 3), np.uint8))}
    row["reflection"] = "<think> Analysis: x. Improvements: y. Steps: z. Final prompt: a red cup. </think>"

    async def run(edit: bool) -> Any:
        stage = diffusers_stages.DiffusersStage(
            diffusers_stages.DiffusersTargets("diffusers", "some/model", edit=edit, options={"steps": 2})
        )
        async with Resources(tmp_path) as bench:
            await stage.open(bench)
            return (await stage.make([row]))[0]

    drawn = asyncio.run(run(edit=False))
    assert drawn["improved"] == png(np.full((8, 8, 3), (255, 0, 0), np.uint8))
    assert calls[0]["prompt"] == "a red cup." and "image" not in calls[0] and calls[0]["steps"] == 2
    assert calls[0]["generator"].initial_seed() == 6
    asyncio.run(run(edit=True))
    assert calls[1]["image"].size == (8, 8) and 'drawn for the prompt "a cup"' in calls[1]["prompt"]
    monkeypatch.undo()
    if not __import__("importlib.util").util.find_spec("diffusers"):
        with pytest.raises(ValueError, match=r"pip install 'irg\[diffusers\]'"):
            asyncio.run(run(edit=True))


@pytest.mark.parametrize("role", ["draft", "target"])
def test_a_model_that_is_not_there_is_told_before_the_prompts_are_made(tmp_path: Path, role: str) -> None:
    target = {"kind": "model", "best_of": 2, "options": QUICK, "judge": WORLD}
    plan = recipe(tmp_path / "out", target)
    plan = replace(plan, **{role: replace(getattr(plan, role), model=str(tmp_path / "none"))})
    with pytest.raises(ValueError, match=f"unknown model '{tmp_path / 'none'}'"):
        build(plan, log=lambda _: None)
    assert not BuildFolder.of(plan).prompts.path.exists()
    build(plan, only_prompts=True, log=lambda _: None)  # prompts alone need no model
    assert BuildFolder.of(plan).prompts.path.exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"colour": 3}, "draft: unknown setting 'colour'"),
        ({"num_timesteps": 1}, "draft: num_timesteps must be"),
        ({"rounds": 2}, "draft: rounds has no meaning in mode 'think'"),
    ],
)
def test_options_are_those_of_irg_generate_and_checked_with_the_recipe(options: dict[str, Any], told: str) -> None:
    data = {
        "out": "o",
        "prompts": {"sources": [{"kind": "file", "path": "p"}]},
        "draft": {"kind": "model", "options": options},
    }
    with pytest.raises(ValueError, match=told):
        read(DataRecipe, data)
