"""``irg improve``, ``irg edit`` and ``irg ask`` as a user meets them, with a pipeline that needs no model."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from irg.cli import ask, running
from irg.cli import main as cli
from irg.engine.events import TextKind
from irg.reasoning.events import Event, Failed, Finished, GenerationError, ImageDone, TextDelta, TextDone
from irg.reasoning.settings import Settings, with_options
from irg.reasoning.sizes import ImageSizes
from irg.results.trajectory import Trajectory, Turn


class FakePipeline:
    def __init__(self) -> None:
        self.defaults = Settings(width=64, height=64)
        self.calls: list[dict[str, Any]] = []
        self.fails: set[int] = set()

    def loaded(self, changes: dict[str, Any]) -> "FakePipeline":
        self.defaults = with_options(Settings(width=64, height=64), changes, ImageSizes(64, 16, 64))
        return self

    def stream(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        settings: Settings,
        batch_size: int,
        task: str,
        images: Sequence[Sequence[Path]],
    ) -> Iterator[Event]:
        self.calls.append({"prompts": prompts, "seeds": seeds, "settings": settings, "task": task, "images": images})
        for i, (prompt, seed, paths) in enumerate(zip(prompts, seeds, images, strict=True)):
            if i in self.fails:
                yield Failed(i, GenerationError(i, prompt, MemoryError("no room")))
                continue
            turns = [Turn(None, Image.open(path).convert("RGB"), given=True) for path in paths]
            kind: TextKind = "answer" if task == "ask" else "thinking" if task == "edit" else "reflection"
            yield TextDelta(i, len(turns), "Yes.", kind)
            yield TextDone(i, len(turns), "Yes.", 2, 0.1, kind=kind)
            if task != "ask":
                yield ImageDone(i, len(turns), turns[-1].image, 0.1)  # type: ignore[arg-type]
            turns.append(Turn("Yes.", None if task == "ask" else turns[-1].image, {}, {"thinking": 0.1}, 2))
            yield Finished(i, Trajectory(prompt, task, seed, "mini", settings.to_dict(), turns))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakePipeline:
    pipeline = FakePipeline()
    for module in (running, ask):
        monkeypatch.setattr(module, "load", lambda options, changes, *_, **__: pipeline.loaded(changes))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("IRG_DEBUG", raising=False)
    for name, color in (("red.png", "red"), ("blue.jpg", "blue")):
        Image.new("RGB", (40, 20), color).save(name)
    Path("notes.txt").write_text("mine")
    return pipeline


def files_in(folder: str) -> set[str]:
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}


def test_a_text_may_be_longer_than_a_files_name(fake: FakePipeline, capsys: pytest.CaptureFixture[str]) -> None:
    question = "What is wrong here? " * 300
    assert cli.main(["ask", "red.png", question]) == 0
    assert cli.main(["edit", "red.png", question]) == 0
    assert [call["prompts"] for call in fake.calls] == [[question], [question]]


def test_improve_one_image(fake: FakePipeline, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["improve", "red.png", "--prompt", "a cat", "--rounds", "2", "--num-timesteps", "9"]) == 0
    call = fake.calls[0]
    assert (call["task"], call["prompts"], call["images"]) == ("improve", ["a cat"], [(Path("red.png"),)])
    settings = call["settings"]
    assert (settings.rounds, settings.improving.num_timesteps, settings.initial.num_timesteps) == (2, 9, 9)
    assert (settings.width, settings.height, settings.mode) == (None, None, "irg")
    assert files_in("irg-out/red-0") == {"initial.png", "improved.png", "trajectory.json", "report.html"}
    out = capsys.readouterr().out
    assert "red.png: a cat" in out and "Reflection: Yes." in out and "Written to irg-out/red-0: initial.png," in out


def test_improve_several_and_a_file(fake: FakePipeline, capsys: pytest.CaptureFixture[str]) -> None:
    Path("deep").mkdir()
    Path("deep/jobs.jsonl").write_text('{"image": "../blue.jpg", "prompt": "a dog", "seed": 7}\n')
    words = ["improve", "red.png", "blue.jpg", "--prompt", "a cat", "--prompts-file", "deep/jobs.jsonl", "--seed", "2"]
    assert cli.main([*words, "--size", "wide", "--out", "o", "--json"]) == 0
    call = fake.calls[0]
    assert call["prompts"] == ["a cat", "a cat", "a dog"] and call["seeds"] == [2, 2, 7]
    assert call["images"] == [(Path("red.png"),), (Path("blue.jpg"),), (Path("deep/../blue.jpg"),)]
    assert (call["settings"].width, call["settings"].height) == (64, 32)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["folder"] for line in lines] == ["o/red-2", "o/blue-2", "o/blue-7"]
    assert [line["given"] for line in lines] == [["red.png"], ["blue.jpg"], ["deep/../blue.jpg"]]
    assert lines[0]["images"] == ["o/red-2/initial.png", "o/red-2/improved.png"] and lines[0]["mode"] == "improve"
    assert "o/index.html" in {f"o/{name}" for name in files_in("o")}


def test_edit(fake: FakePipeline, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["edit", "red.png", "blue.jpg", "put the cat there", "--cfg-text-scale", "3", "--think"]) == 0
    call = fake.calls[0]
    assert (call["task"], call["images"]) == ("edit", [(Path("red.png"), Path("blue.jpg"))])
    assert call["prompts"] == ["put the cat there"] and call["settings"].mode == "think"
    assert call["settings"].improving.cfg_text_scale == 3.0
    assert {"given-1.png", "given-2.png", "improved.png"} < files_in("irg-out/red-0")
    assert "Thinking: Yes." in capsys.readouterr().out
    assert cli.main(["edit", "red.png", "x", "-n", "2", "--quiet", "--out", "o"]) == 0
    assert capsys.readouterr() == ("o/red-0\no/red-1\n", "")
    assert fake.calls[1]["settings"].mode == "direct"


def test_edit_from_a_file(fake: FakePipeline) -> None:
    Path("jobs.jsonl").write_text(
        '{"images": ["red.png", "blue.jpg"], "prompt": "a"}\n{"image": "red.png", "prompt": "b"}'
    )
    assert cli.main(["edit", "--prompts-file", "jobs.jsonl", "--out", "o"]) == 0
    assert fake.calls[0]["images"] == [(Path("red.png"), Path("blue.jpg")), (Path("red.png"),)]
    Path("jobs.csv").write_text("prompt,image,note\nb,blue.jpg,hm\n")
    assert cli.main(["edit", "--prompts-file", "jobs.csv", "--out", "p"]) == 0
    assert fake.calls[1]["images"] == [(Path("blue.jpg"),)]


def test_ask(fake: FakePipeline, capsys: pytest.CaptureFixture[str]) -> None:
    before = files_in(".")
    assert cli.main(["ask", "red.png", "Is it red?", "--max-tokens", "9", "--temperature", "0"]) == 0
    call = fake.calls[0]
    assert (call["task"], call["settings"].max_think_tokens, call["settings"].temperature) == ("ask", 9, 0.0)
    assert "Answer: Yes.\n" in capsys.readouterr().out
    assert cli.main(["ask", "red.png", "Is it red?", "--quiet"]) == 0
    assert capsys.readouterr() == ("Yes.\n", "")
    assert cli.main(["ask", "red.png", "blue.jpg", "Same?", "--json", "--seed", "4"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {
        "index": 0,
        "prompt": "Same?",
        "given": ["red.png", "blue.jpg"],
        "seed": 4,
        "model": "mini",
        "answer": "Yes.",
        "tokens": 2,
        "seconds": 0.1,
    }
    assert files_in(".") == before


def test_a_failure_ends_alone(fake: FakePipeline, capsys: pytest.CaptureFixture[str]) -> None:
    fake.fails = {0}
    assert cli.main(["improve", "red.png", "blue.jpg", "--prompt", "a", "--out", "o"]) == 2
    error = capsys.readouterr().err
    assert "irg improve: request 0 ('a') failed: no room" in error and "1 of 2 requests failed" in error
    assert files_in("o") >= {"blue-0/improved.png"}
    assert cli.main(["ask", "red.png", "a", "--quiet"]) == 2
    assert "irg ask: request 0 ('a') failed: no room" in capsys.readouterr().err


def test_an_animated_image_gets_a_word(fake: FakePipeline, capsys: pytest.CaptureFixture[str]) -> None:
    frame = Image.new("RGB", (40, 20), "red")
    frame.save("two.gif", save_all=True, append_images=[Image.new("RGB", (40, 20), "blue")])
    assert cli.main(["improve", "two.gif", "--prompt", "a"]) == 0
    assert "two.gif: holds several images; the first is taken" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["improve"], "no prompt is given; for example: irg improve"),
        (["improve", "red.png"], "say what the images should show (--prompt)"),
        (["improve", "--prompt", "a"], "say the images of --prompt"),
        (["improve", "none.png", "--prompt", "a"], "none.png: No such file or directory"),
        (["improve", "https://x.org/a.png", "--prompt", "a"], "is an address; download the image and give the file"),
        (["improve", "notes.txt", "--prompt", "a"], "notes.txt: is no image that can be read"),
        (["improve", ".", "--prompt", "a"], ".: is a folder, an image file is needed"),
        (["improve", "red.png", "--prompt", ""], "the prompt is empty"),
        (["improve", "red.png", "--prompt", "a", "--mode", "think"], "--mode"),
        (["improve", "red.png", "--prompt", "a", "--improve-num-timesteps", "3"], "--improve-num-timesteps"),
        (["improve", "--prompts-file", "two.jsonl"], "two.jsonl: one image a request, got red.png, blue.jpg"),
        (["improve", "--prompts-file", "plain.txt"], "plain.txt, line 1: the field 'image' is missing"),
        (["edit"], "image files and then a text in quotes are needed; for example: irg edit"),
        (["edit", "red.png"], "image files and then a text in quotes are needed"),
        (["edit", "red.png", "blue.jpg"], "image files and then a text in quotes are needed"),
        (["edit", "red.png", "x", "--rounds", "2"], "--rounds"),
        (["edit", "--prompts-file", "type.jsonl"], "type.jsonl, line 1: the field 'image' must be a path"),
        (
            ["edit", "--prompts-file", "field.jsonl"],
            "unknown field 'picture'; the fields are prompt, seed, image",
        ),
        (["ask", "red.png"], "image files and then a text in quotes are needed; for example: irg ask"),
        (["ask", "red.png", "x", "--max-tokens", "0"], "--max-tokens must be at least 1, got 0"),
        (["ask", "red.png", "x", "--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["ask", "none.png", "x"], "none.png: No such file"),
    ],
)
def test_a_mistake_is_one_line_before_the_model_is_loaded(
    fake: FakePipeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    Path("two.jsonl").write_text('{"images": ["red.png", "blue.jpg"], "prompt": "a"}')
    Path("type.jsonl").write_text('{"image": 7, "prompt": "a"}')
    Path("field.jsonl").write_text('{"picture": "red.png", "prompt": "a"}')
    Path("plain.txt").write_text("a cat\n")
    for module in (running, ask):
        monkeypatch.setattr(module, "load", lambda *_, **__: pytest.fail("the model is being loaded"))
    before = files_in(".")
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert told in error and error.startswith(f"irg {words[0]}: error: ") and error.count("\n") == 1
    assert files_in(".") == before
