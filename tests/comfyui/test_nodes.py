"""The ComfyUI nodes against a double of the V3 schema (:mod:`comfyui_double`), with a tiny model."""

import ast
import asyncio
import base64
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
import torch
from comfyui_double import PACK, Host, Interrupted, check_node, pack
from PIL import Image

from irg.model.weights.checkpoint import LoadedModel
from irg.model.weights.initialize import write_folder
from irg.reasoning.pipeline import IRGPipeline
from irg.reasoning.settings import with_options
from irg.serving.image_data import encode

LOOP = {
    "mode": "irg",
    "rounds": 1,
    "size": "32",
    "steps": 3,
    "guidance": 0.0,
    "redraw_guidance": 0.0,
    "image_guidance": 0.0,
    "temperature": 1.0,
}
TEXT = {"max_tokens": 0, "temperature": 1.0, "seed": 7}
DRAW = {"steps": 3, "guidance": 0.0, "seed": 0, "reseed": False}
REDRAW = DRAW | {"image_guidance": 0.0}
AGAIN = TEXT | {"reseed": False, "seed": 0}


@pytest.fixture
def loaded_pack() -> Iterator[tuple[Any, Host]]:
    with pack() as loaded:
        yield loaded


@pytest.fixture
def nodes(loaded_pack: tuple[Any, Host]) -> SimpleNamespace:
    extension = asyncio.run(loaded_pack[0].comfy_entrypoint())
    return SimpleNamespace(**{node.__name__: node for node in asyncio.run(extension.get_node_list())})


@pytest.fixture
def host(loaded_pack: tuple[Any, Host]) -> Host:
    return loaded_pack[1]


@pytest.fixture(scope="module")
def folder(tiny_loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_folder(folder, tiny_loaded.config)
    return folder


@pytest.fixture(scope="module")
def pipe(folder: Path) -> IRGPipeline:
    pipe = IRGPipeline.from_pretrained(folder, "cpu")
    pipe.defaults = with_options(pipe.defaults, {"max_think_tokens": 4})
    return pipe


@pytest.fixture
def model(nodes: SimpleNamespace, pipe: IRGPipeline) -> Any:
    return sys.modules[nodes.LoadModel.__module__].LocalModel(pipe, downloads=False)  # type: ignore[attr-defined]


def run(node: Any, **values: Any) -> Any:
    result = node.execute(**values)
    return asyncio.run(result) if asyncio.iscoroutine(result) else result


def test_schemas_fit_the_interface(nodes: SimpleNamespace) -> None:
    schemas = [check_node(node) for node in vars(nodes).values()]
    assert {one.node_id for one in schemas} == {
        "IRGLoadModel",
        "IRGServer",
        "IRGGenerate",
        "IRGThink",
        "IRGStartFromImage",
        "IRGDraw",
        "IRGReflect",
        "IRGRedraw",
    }
    for schema in schemas:
        assert schema.display_name and schema.category.split("/")[0] == "IRG" and schema.description
        assert all(output.display_name for output in schema.outputs)
        for one in schema.inputs:
            if one.id == "seed":
                assert one.control_after_generate and one.max == 2**63 - 1  # type: ignore[attr-defined]


def test_the_steps_give_what_the_loop_gives(nodes: SimpleNamespace, model: Any, host: Host) -> None:
    whole = run(nodes.Generate, model=model, prompt="a cat", seed=7, **LOOP)
    image, first, images, latent, thinking, reflection = whole.args
    assert image.shape == (1, 32, 32, 3) and images.shape == (2, 32, 32, 3)
    assert torch.equal(images[:1], first) and torch.equal(images[1:], image) and not torch.equal(first, image)
    assert [(value, total) for value, total, _ in host.progress] == [(n, 6) for n in (1, 2, 3, 3, 4, 5, 6, 6)]
    previews = [one for _, _, one in host.progress if one is not None]
    assert [one.size for one in previews] == [(32, 32), (32, 32)]

    context, thought = run(nodes.Think, model=model, prompt="a cat", mode="irg", size="32", **TEXT).args
    context, drawn, _ = run(nodes.Draw, context=context, **DRAW).args
    context, reflected, done = run(nodes.Reflect, context=context, **AGAIN).args
    context, redrawn, latent_again = run(nodes.Redraw, context=context, **REDRAW).args
    assert (thought, reflected, done) == (thinking, reflection, False)
    assert (drawn - first).abs().mean() < 0.5 / 255 and (redrawn - image).abs().mean() < 0.5 / 255
    assert torch.allclose(latent["samples"], latent_again["samples"], atol=0.05)


def test_previews_while_denoising(nodes: SimpleNamespace, model: Any, host: Host) -> None:
    """Three of each image beside the image itself, where ComfyUI's previews are on; by the loop and by its steps."""
    host.preview_method.value = "auto"
    run(nodes.Generate, model=model, prompt="a cat", seed=7, **LOOP | {"steps": 9})
    shown = [(value, one) for value, _, one in host.progress if one is not None]
    assert [value for value, _ in shown] == [2, 4, 7, 9, 11, 13, 16, 18]
    assert {one.size for _, one in shown} == {(32, 32)}

    host.progress.clear()
    context = run(nodes.Think, model=model, prompt="a cat", mode="irg", size="32", **TEXT)[0]
    run(nodes.Draw, context=context, **DRAW | {"steps": 9})
    assert [(value, one) for value, _, one in host.progress if one is not None] == shown[:4]


def test_a_new_thinking_stands_behind_its_reflection(
    nodes: SimpleNamespace, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the loop gives them, and as a server's last event tells them."""
    monkeypatch.setattr(model.pipe, "defaults", with_options(model.pipe.defaults, {"revise": "thinking"}))
    *_, thinking, later = run(nodes.Generate, model=model, prompt="a cat", seed=7, **LOOP).args
    first, second = model.pipe("a cat", seed=7, size="32", num_timesteps=4, temperature=1.0).trajectory.turns
    assert first.thinking and second.reflection and second.thinking
    assert (thinking, later) == (first.thinking, f"{second.reflection}\n\n{second.thinking}")

    told = sys.modules[nodes.Server.__module__]._told  # type: ignore[attr-defined]
    png = base64.b64encode(encode(Image.new("RGB", (8, 8)))).decode()
    turns = [{"thinking": thinking}, {"reflection": second.reflection, "thinking": second.thinking}]
    event = {"type": "image_generation.completed", "b64_json": png, "irg": {"turns": turns}}
    assert told(event).texts == [thinking, later]
    preview = told({"type": "image_generation.partial_image", "kind": "preview", "b64_json": png})
    assert preview.preview.size == (8, 8) and preview.image is None


def test_a_latent_decodes_to_its_image(nodes: SimpleNamespace, model: Any) -> None:
    image, *_, latent, _, _ = run(nodes.Generate, model=model, prompt="a cat", seed=7, **LOOP | {"mode": "think"}).args
    autoencoder = sys.modules[nodes.LoadModel.__module__].Autoencoder(model.pipe)  # type: ignore[attr-defined]
    decoded = autoencoder.decode(latent["samples"])
    assert decoded.shape == image.shape
    assert (decoded - image).abs().max() < 1.01 / 255  # levels are truncated in the image
    assert autoencoder.encode(image).shape == latent["samples"].shape


def test_another_seed_draws_again_from_the_same_thinking(nodes: SimpleNamespace, model: Any) -> None:
    context = run(nodes.Think, model=model, prompt="a cat", mode="irg", size="32", **TEXT)[0]
    kept, fixed, other = (
        run(nodes.Draw, context=context, **DRAW | {"seed": seed, "reseed": reseed})[1]
        for seed, reseed in ((1, False), (1, True), (2, True))
    )
    assert not torch.equal(fixed, other) and not torch.equal(kept, fixed)
    assert torch.equal(kept, run(nodes.Draw, context=context, **DRAW | {"seed": 9})[1])


def test_own_texts_and_an_image_of_ones_own(nodes: SimpleNamespace, model: Any) -> None:
    given = torch.rand(1, 32, 32, 3)
    context = run(nodes.StartFromImage, model=model, image=given, prompt="a cat", seed=1)[0]
    context, text, done = run(nodes.Reflect, context=context, own_text="make it red", **AGAIN).args
    assert (text, done) == ("make it red", False)
    assert run(nodes.Redraw, context=context, **REDRAW)[1].shape == (1, 32, 32, 3)
    improved = run(nodes.Generate, model=model, prompt="a cat", seed=1, image=given, **LOOP | {"size": "auto"})
    assert (improved[1] - given).abs().max() <= 0.51 / 255 and improved[2].shape == (1, 32, 32, 3)
    assert improved[4] == "" and improved[5]


def test_loading(nodes: SimpleNamespace, folder: Path, host: Host) -> None:
    loaded = run(nodes.LoadModel, model=str(folder), memory="auto", download=False)
    assert loaded[0].pipe.name == str(folder) and host.freed == 1
    assert nodes.LoadModel.validate_inputs(model="mini") is True
    assert nodes.LoadModel.validate_inputs(model=None) is True
    assert "unknown model 'nothing here'" in nodes.LoadModel.validate_inputs(model="nothing here")
    assert nodes.LoadModel.validate_inputs(model="owner/name") is True  # looked for when it runs


def test_nothing_is_downloaded_unasked(
    nodes: SimpleNamespace, model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"not in the cache.*; or turn on download"):
        run(nodes.LoadModel, model="nobody/there", memory="auto", download=False)
    with pytest.raises(ValueError, match="may have to be downloaded: turn on download at IRG Load Model"):
        run(nodes.Generate, model=model, prompt="a cat", seed=7, critic="hf:a/b", **LOOP)


def test_mistakes_are_told(nodes: SimpleNamespace, model: Any) -> None:
    check = nodes.Generate.validate_inputs
    assert check() is True and check(prompt="a cat", size="16:9", critic="self") is True
    assert "size must be WIDTHxHEIGHT" in check(size="12 by 12")
    assert check(mode="direct", critic="self") is True
    assert "mode must be one of" in check(mode="dream")
    assert "memory must be one of" in nodes.LoadModel.validate_inputs(model="mini", memory="int3")
    assert "the prompt is empty" in nodes.Think.validate_inputs(prompt=" ")
    assert "nobody" in nodes.StartFromImage.validate_inputs(critic="nobody")
    with pytest.raises(ValueError, match="height must be a multiple of"):
        run(nodes.Generate, model=model, prompt="a cat", seed=7, **LOOP | {"size": "33"})
    with pytest.raises(ValueError, match="critic has no meaning in mode 'direct'"):
        run(nodes.Generate, model=model, prompt="a cat", seed=7, critic="mini", **LOOP | {"mode": "direct"})
    with pytest.raises(ValueError, match="one image is needed, got a batch of 2"):
        run(nodes.StartFromImage, model=model, image=torch.rand(2, 32, 32, 3), prompt="a cat", seed=1)
    thought = run(nodes.Think, model=model, prompt="a cat", mode="irg", size="32", **TEXT)[0]
    with pytest.raises(ValueError, match="take IRG Draw first"):
        run(nodes.Reflect, context=thought, **AGAIN)
    drawn = run(nodes.Draw, context=thought, **DRAW)[0]
    with pytest.raises(ValueError, match="take IRG Look and Reflect first"):
        run(nodes.Redraw, context=drawn, **REDRAW)
    with pytest.raises(ValueError, match="has an image already"):
        run(nodes.Draw, context=drawn, **DRAW)


def test_the_stop_button(nodes: SimpleNamespace, model: Any, host: Host) -> None:
    host.interrupted = True
    with pytest.raises(Interrupted):
        run(nodes.Generate, model=model, prompt="a cat", seed=7, **LOOP)
    with pytest.raises(Interrupted):
        run(nodes.Think, model=model, prompt="a cat", mode="irg", size="32", **TEXT)
    host.interrupted = False
    assert model.pipe.engine.scheduler.running == []


def test_without_irg(nodes: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("irg.")]:
        monkeypatch.setitem(sys.modules, name, None)
    assert "irg is not installed in ComfyUI's Python" in nodes.LoadModel.validate_inputs(model="mini")
    assert nodes.Generate.validate_inputs(prompt="a cat", size="auto") is True


# ------------------------------------------------------------------------------------------------------- the folder


def test_example_workflows(nodes: SimpleNamespace) -> None:
    """Their nodes have the inputs, outputs and as many values as the schemas say; each has a thumbnail."""
    schemas = {schema.node_id: schema for schema in (check_node(node) for node in vars(nodes).values())}
    paths = sorted((PACK / "example_workflows").glob("*.json"))
    assert len(paths) >= 4
    seen = set()
    for path in paths:
        with Image.open(path.with_suffix(".jpg")) as thumbnail:
            assert thumbnail.format == "JPEG" and path.with_suffix(".jpg").stat().st_size < 60_000
        workflow = json.loads(path.read_text(encoding="utf-8"))
        UUID(workflow["id"])  # the page warns of any other
        for node in workflow["nodes"]:
            if (schema := schemas.get(node["type"])) is None:
                continue
            seen.add(schema.node_id)
            widgets = [one for one in schema.inputs if hasattr(one, "default")]
            controls = sum(bool(getattr(one, "control_after_generate", None)) for one in widgets)
            assert len(node["widgets_values"]) == len(widgets) + controls, (path.name, node["type"])
            assert [one["name"] for one in node["outputs"]] == [one.display_name for one in schema.outputs]
            assert {one["name"] for one in node["inputs"]} == {one.id for one in schema.inputs} - {
                one.id for one in widgets
            }
    assert seen == set(schemas) - {"IRGStartFromImage"}


def test_the_folder_breaks_nobodys_comfyui() -> None:
    project = tomllib.loads((PACK / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["dependencies"] == [] and project["tool"]["comfy"]["DisplayName"]
    lines = (PACK / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert all(not line.strip() or line.startswith("#") for line in lines)
    for path in PACK.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\b(pip|subprocess|eval|exec|flash_attn)\b", text), path.name
        imported = {
            (node.module or "").split(".")[0]
            for node in ast.parse(text).body  # of the module itself; inside functions and TYPE_CHECKING all is lazy
            if isinstance(node, ast.ImportFrom) and not node.level
        }
        assert "irg" not in imported, f"{path.name} must be importable without irg"


@pytest.mark.skipif("IRG_TEST_COMFYUI" not in os.environ, reason="needs ComfyUI: IRG_TEST_COMFYUI=FOLDER:PYTHON")
def test_in_comfyui() -> None:
    folder, _, python = os.environ["IRG_TEST_COMFYUI"].partition(":")
    script = PACK / "tests" / "run_in_comfyui.py"
    command = [python, str(script), folder, python, "--serve-python", sys.executable]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    assert ended.returncode == 0, ended.stdout + ended.stderr
