"""Requests about given images: improve, edit, ask; and negative prompts."""

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from irg.engine.ops import Draw, Forget, Look, Program, Said, Say, Wait, Write
from irg.model.weights.checkpoint import LoadedModel
from irg.model.weights.initialize import write_folder
from irg.reasoning import pipeline
from irg.reasoning.events import Finished
from irg.reasoning.negative_prompt import with_negative_prompt
from irg.reasoning.pipeline import IRGPipeline
from irg.reasoning.settings import with_options
from irg.results.trajectory import Trajectory

QUICK = {"num_timesteps": 3, "max_think_tokens": 4}


@pytest.fixture(scope="module")
def pipe(tiny_loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> IRGPipeline:
    folder = tmp_path_factory.mktemp("tiny")
    write_folder(folder, tiny_loaded.config)
    return IRGPipeline.from_pretrained(folder, "cpu", options={"improve_cfg_text_scale": 4.0})


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def pixels(image: Image.Image | None) -> np.ndarray:
    assert image is not None
    return np.asarray(image)


def operations(pipe: IRGPipeline, run: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The operations of a request's program."""
    seen: list[Any] = []
    program_of = pipe.protocol.program

    def watched(job: Any) -> Program:
        program, result = program_of(job), None
        while True:
            try:
                op = program.send(result)
            except StopIteration as stop:
                return stop.value
            seen.append(op)
            result = yield op

    with monkeypatch.context() as patch:
        patch.setattr(type(pipe.protocol), "program", lambda _, job: watched(job))
        run()
    return seen


# ------------------------------------------------------------------------------------------------------------- improve


def test_improve_begins_with_the_look(pipe: IRGPipeline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    noise(300, 150).save(tmp_path / "photo.png")
    found: list[Trajectory] = []
    ops = operations(
        pipe,
        lambda: found.append(pipe.improve(tmp_path / "photo.png", "a cat", rounds=2, seed=3, **QUICK).trajectory),
        monkeypatch,
    )
    system = [Say(pipe.profile.system_prompt)]
    assert ops[:2] == [*system, Say("a cat")]
    assert [type(op) for op in ops[2:]] == [Look, Write, Draw, Look, Write, Draw]
    (trajectory,) = found
    assert (trajectory.mode, len(trajectory.turns), [turn.given for turn in trajectory.turns]) == (
        "improve",
        3,
        [True, False, False],
    )
    assert [image.size for image in (turn.image for turn in trajectory.turns) if image] == [(128, 64)] * 3
    assert trajectory.turns[0].settings == {} and trajectory.turns[1].settings["num_timesteps"] == 3
    assert trajectory.thinking is None and trajectory.reflection == trajectory.turns[2].thinking
    assert (trajectory.settings["width"], trajectory.settings["height"]) == (128, 64)
    folder = trajectory.save(tmp_path / "out")
    assert {path.name for path in folder.glob("*.png")} == {"initial.png", "improved.png", "improved-2.png"}
    assert Trajectory.load(folder).to_dict() == trajectory.to_dict()
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count("<h2>Given image</h2>") == 1 and "<h2>First image</h2>" not in page
    assert page.count("<h3>Reflection</h3>") == 2 and "<h3>Thinking</h3>" not in page


def test_the_size_is_the_images_or_the_one_that_is_set(pipe: IRGPipeline) -> None:
    for size, wanted in (((300, 200), (128, 80)), ((20, 20), (32, 32)), ((64, 96), (64, 96))):
        assert pipe.edit(noise(*size), "x", seed=0, **QUICK).image.size == wanted
    assert pipe.edit(noise(300, 200), "x", seed=0, size="48x32", **QUICK).image.size == (48, 32)
    assert pipe.edit(noise(300, 200), "x", seed=0, size="square", **QUICK).image.size == (128, 128)


# ------------------------------------------------------------------------------------------------------- edit and ask


def test_edit_shows_all_images_then_the_instruction(
    pipe: IRGPipeline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found: list[Trajectory] = []
    images = [noise(64, 32, seed) for seed in (1, 2)]
    ops = operations(
        pipe, lambda: found.append(pipe.edit(images, "swap them", seed=3, **QUICK).trajectory), monkeypatch
    )
    assert [type(op) for op in ops] == [Look, Look, Say, Draw] and ops[2] == Say("swap them")
    assert all(np.array_equal(pixels(op.image), pixels(image)) for op, image in zip(ops[:2], images, strict=True))
    draw = ops[3]
    assert (draw.drop, draw.drop_text, draw.drop_image) == ((), (4,), (0, 1, 2, 3))  # an image is two parts
    (trajectory,) = found
    assert trajectory.mode == "edit" and [turn.given for turn in trajectory.turns] == [True, True, False]
    folder = trajectory.save(tmp_path / "out")
    assert {path.name for path in folder.glob("*.png")} == {"given-1.png", "given-2.png", "improved.png"}
    assert Trajectory.load(folder).to_dict() == trajectory.to_dict()
    assert pipe.edit(images[0], "x", seed=0, **QUICK).trajectory.image_names() == ["initial.png", "improved.png"]


def test_edit_with_thinking(pipe: IRGPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Trajectory] = []
    ops = operations(
        pipe,
        lambda: found.append(pipe.edit(noise(64, 32), "x", think=True, seed=3, **QUICK).trajectory),
        monkeypatch,
    )
    assert [type(op) for op in ops] == [Say, Look, Say, Write, Draw]
    assert (ops[4].drop_text, ops[4].drop_image) == ((3, 4), (1, 2, 4))
    assert found[0].thinking == found[0].turns[1].thinking and found[0].reflection is None
    page = found[0]._files()["report.html"].decode()
    assert "<h2>Edited image</h2>" in page and "<h3>Thinking</h3>" in page


def test_drawing_settings_need_no_prefix(pipe: IRGPipeline) -> None:
    one = pipe.edit(noise(32, 32), "x", seed=3, num_timesteps=2).trajectory.turns[1].settings
    other = pipe.edit(noise(32, 32), "x", seed=3, improve_num_timesteps=2).trajectory.turns[1].settings
    assert one == other and one["num_timesteps"] == 2
    with pytest.raises(ValueError, match="num_timesteps and improve_num_timesteps are the same"):
        pipe.edit(noise(32, 32), "x", num_timesteps=2, improve_num_timesteps=2)


def test_ask_reads_images_through_the_vit_alone(
    pipe: IRGPipeline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answers: list[str] = []
    ops = operations(pipe, lambda: answers.append(pipe.ask(noise(64, 32), "what?", max_tokens=5, seed=1)), monkeypatch)
    assert [type(op) for op in ops] == [Look, Say, Write] and (ops[0].vae, ops[0].vit) == (False, True)
    assert ops[2].max_tokens == 5
    settings = with_options(pipe.defaults.sized_by_image(), {"mode": "direct", "max_think_tokens": 5})
    events = pipe.stream(["what?"], [1], settings, task="ask", images=[[noise(64, 32)]])
    (event,) = (event for event in events if isinstance(event, Finished))
    assert event.trajectory.answer == answers[0] and event.trajectory.turns[-1].tokens <= 5
    assert Trajectory.load(event.trajectory.save(tmp_path / "out")).answer == answers[0]


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda pipe: pipe.improve("none.png", "x"), "none.png: No such file"),
        (lambda pipe: pipe.improve(b"no", "x"), "is no image that can be read"),
        (lambda pipe: pipe.improve(noise(2000, 20), "x"), "the image's 2000x20 pixels are too narrow: .* 128x16"),
        (lambda pipe: pipe.edit(noise(9, 9), "x"), "the image's 9x9 pixels are too few: a side needs 16"),
        (lambda pipe: pipe.edit([], "x"), "edit needs at least one image, got 0"),
        (lambda pipe: pipe.edit(noise(32, 32), " "), "the prompt is empty"),
        (lambda pipe: pipe.ask([], "x"), "ask needs at least one image, got 0"),
        (lambda pipe: pipe.stream("x", images=[[noise(32, 32)]]), "generate needs no image, got 1"),
        (lambda pipe: pipe.stream("x", task="improve", images=[[noise(32, 32)] * 2]), "improve needs one image, got 2"),
        (lambda pipe: pipe.stream(["x", "y"], task="edit", images=[[noise(32, 32)]]), "2 prompts need images for each"),
    ],
)
def test_mistakes_are_told_before_anything_runs(
    pipe: IRGPipeline, call: Callable[[IRGPipeline], Any], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipe.engine, "session", lambda *_: pytest.fail("something runs"))
    with pytest.raises(ValueError, match=told):
        call(pipe)


def test_what_the_protocol_can_not_do_is_told_before_the_weights_are_read(
    tiny_loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path, tiny_loaded.config)
    monkeypatch.setattr(pipeline, "load_with_plan", lambda *_: pytest.fail("the weights are being read"))
    with pytest.raises(ValueError, match="protocol 'bagel' does not reflect by itself; its loop needs a critic"):
        IRGPipeline.from_pretrained(tmp_path, "cpu", protocol="bagel", options={"mode": "irg"}, task="improve")
    noise(2000, 20).save(tmp_path / "narrow.png")
    with pytest.raises(ValueError, match=r"narrow\.png: 2000x20 pixels are too narrow"):
        IRGPipeline.from_pretrained(tmp_path, "cpu", options={}, task="improve", images=[tmp_path / "narrow.png"])


# ----------------------------------------------------------------------------------------------------- negative prompt


def collected(program: Program, results: list[Any]) -> tuple[list[Any], Any]:
    """A program's operations when they have these results, and what it returns."""
    ops = [next(program)]
    for result in results:
        try:
            ops.append(program.send(result))
        except StopIteration as stop:
            return ops, stop.value
    raise AssertionError("the program has not ended")


def two_images(pipe: IRGPipeline) -> Program:
    settings = pipe.defaults.initial
    prompt: Said = yield Say("a cat")
    first = yield Draw(32, 32, settings, drop_text=prompt.handles)
    text = yield Write(4)
    second = yield Draw(32, 32, settings, drop_text=text.handles, drop_image=(7,), drop=(8,))
    return [first, second]


def test_it_stands_in_the_text_branch_alone_and_is_forgotten(pipe: IRGPipeline) -> None:
    results = [Said((0,)), Said((1,)), "first", None, Said((1,)), Said((2,)), "second", None]
    ops, returned = collected(with_negative_prompt(two_images(pipe), "blurry"), results)
    settings = pipe.defaults.initial
    assert ops == [
        Say("a cat"),
        Say("blurry"),
        Draw(32, 32, settings, drop_text=(0,), drop_image=(1,), drop=(1,)),
        Forget((0,)),
        Write(4),
        Say("blurry"),
        Draw(32, 32, settings, drop_text=(1,), drop_image=(7, 2), drop=(8, 2)),
        Forget((1,)),
    ]
    assert returned == ["first", "second"]


def test_before_an_empty_sequence_everything_is_forgotten(pipe: IRGPipeline) -> None:
    def bare() -> Program:
        return (yield Draw(32, 32, pipe.defaults.initial))

    ops, _ = collected(with_negative_prompt(bare(), "blurry"), [Said((0,)), "image", None])
    assert ops[2] == Forget(())


def test_errors_reach_the_program(pipe: IRGPipeline) -> None:
    def waits() -> Program:
        try:
            yield Wait(Future())
        except TimeoutError:
            return "caught"

    program = with_negative_prompt(waits(), "blurry")
    next(program)
    with pytest.raises(StopIteration, match="caught"):
        program.throw(TimeoutError())


DIRECT = {"mode": "direct", "size": "32", "num_timesteps": 4, "cfg_interval": (0.0, 1.0)}


def test_an_empty_one_changes_nothing_and_a_text_does(pipe: IRGPipeline) -> None:
    plain, empty, blurry, other = (
        pixels(pipe("a cat", seed=1, **DIRECT, **more).image)
        for more in ({}, {"negative_prompt": ""}, {"negative_prompt": "blurry"}, {"negative_prompt": "a dog"})
    )
    assert np.array_equal(plain, empty)
    assert not np.array_equal(plain, blurry) and not np.array_equal(blurry, other)


def test_the_prompt_itself_as_negative_prompt_is_no_guidance(pipe: IRGPipeline) -> None:
    """Both branches are the same then: the guided velocity is the unguided one."""
    unguided = pixels(pipe("a cat", seed=1, **DIRECT, cfg_text_scale=1.0).image)
    same = pixels(pipe("a cat", seed=1, **DIRECT, cfg_text_scale=4.0, negative_prompt="a cat").image)
    assert np.abs(unguided.astype(int) - same).max() <= 1
    assert np.abs(unguided.astype(int) - pixels(pipe("a cat", seed=1, **DIRECT, cfg_text_scale=4.0).image)).max() > 1


def test_texts_do_not_see_it(pipe: IRGPipeline) -> None:
    """The image is given: what differs in the reflection could only be what it sees."""
    settings = {"rounds": 1, "seed": 1, **QUICK}
    plain = pipe.improve(noise(32, 32), "a cat", **settings).trajectory
    negative = pipe.improve(noise(32, 32), "a cat", negative_prompt="blurry", **settings).trajectory
    assert plain.reflection == negative.reflection
    assert not np.array_equal(pixels(plain.image), pixels(negative.image))
    assert negative.settings["negative_prompt"] == "blurry"


def test_without_guidance_it_is_refused(pipe: IRGPipeline) -> None:
    for call in (
        lambda: pipe("a cat", mode="direct", cfg_text_scale=1.0, negative_prompt="blurry"),
        lambda: pipe("a cat", cfg_text_scale=1.0, improve_cfg_text_scale=1.0, negative_prompt="blurry"),
        lambda: pipe.edit(noise(32, 32), "x", cfg_text_scale=1.0, negative_prompt="blurry"),
    ):
        with pytest.raises(ValueError, match="negative_prompt has no effect without guidance by the text"):
            call()
    with pytest.raises(ValueError, match="negative_prompt: the prompt is empty"):
        pipe("a cat", negative_prompt=" ")
