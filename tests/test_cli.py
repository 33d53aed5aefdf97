"""The command line as a user meets it, with a pipeline that needs no model."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from irg.cli import main as cli
from irg.cli import running
from irg.cli.output import slug
from irg.engine.events import TextKind
from irg.engine.settings import DrawSettings
from irg.reasoning.events import DenoiseStep, Event, Failed, Finished, GenerationError, ImageDone, TextDelta, TextDone
from irg.reasoning.settings import Settings, with_options
from irg.reasoning.sizes import ImageSizes
from irg.results.metadata import read_png_settings
from irg.results.trajectory import Trajectory, Turn
from irg.version import __version__

T1 = "<think> Scene: meadow. </think>"
T2 = "<think> Analysis: it is green. Improvements: recolor. Steps: fix 1. Final prompt: red. </think>"


class FakePipeline:
    """Does what a pipeline does, in no time. ``faults``: request index -> what is raised when it should start."""

    def __init__(self, faults: dict[int, BaseException] | None = None) -> None:
        self.own = self.defaults = Settings(max_think_tokens=99, initial=DrawSettings(num_timesteps=4))
        self.faults = faults or {}
        self.calls: list[dict[str, Any]] = []
        self.closed = False

    def loaded(self, changes: dict[str, Any]) -> "FakePipeline":
        """As it is loaded with settings from the command line."""
        self.defaults = with_options(self.own, changes, ImageSizes(usual=64, stride=16, largest=64))
        return self

    def stream(
        self, prompts: Sequence[str], seeds: Sequence[int], settings: Settings, batch_size: int
    ) -> Iterator[Event]:
        self.calls.append({"prompts": prompts, "seeds": seeds, "settings": settings, "batch_size": batch_size})
        if settings.width is not None and settings.width % 16:
            raise ValueError("width must be a multiple of 16")
        return self._events(prompts, seeds, settings)

    def _events(self, prompts: Sequence[str], seeds: Sequence[int], settings: Settings) -> Iterator[Event]:
        try:
            for i, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
                if i in self.faults:
                    raise self.faults[i]
                yield from self._request(i, prompt, seed, settings)
        finally:
            self.closed = True

    def _request(self, i: int, prompt: str, seed: int, settings: Settings) -> Iterator[Event]:
        turns = []
        for turn in range(1 + settings.rounds if settings.mode == "irg" else 1):
            text = (T2 if turn else T1) if settings.mode != "direct" else None
            kind: TextKind = "reflection" if turn else "thinking"
            if text:
                for piece in text.split(" "):
                    yield TextDelta(i, turn, piece + " ", kind)
                yield TextDone(i, turn, text, 5, 0.1, kind=kind)
            total = settings.draw(turn).num_timesteps - 1
            for step in range(1, total + 1):
                yield DenoiseStep(i, turn, step, total)
            image = Image.new("RGB", (settings.width or 32, settings.height or 32), (seed % 256, turn, 0))
            yield ImageDone(i, turn, image, 0.2)
            turns.append(Turn(text, image, settings.draw(turn).to_dict(), {"thinking": 0.1, "drawing": 0.2}, 5))
        yield Finished(i, Trajectory(prompt, settings.mode, seed, "mini", settings.to_dict(), turns))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakePipeline:
    pipeline = FakePipeline()
    monkeypatch.setattr(running, "load", lambda options, changes, *_, **__: pipeline.loaded(changes))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("IRG_DEBUG", raising=False)
    return pipeline


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


ONE = {"initial.png", "improved.png", "trajectory.json", "report.html"}


def test_one_prompt_and_nothing_else(fake: FakePipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate", "a photo of three red apples left of a bus"]) == 0
    folder = tmp_path / "irg-out" / "a-photo-of-three-red-apples-left-of-a-bus-0"
    assert files_in(folder) == ONE
    out = capsys.readouterr().out
    assert "Thinking: <think> Scene: meadow. </think>" in out and "Reflection: <think> Analysis: it is green." in out
    assert "First image" in out and "Improved image" in out and f"Written to {folder.relative_to(tmp_path)}" in out
    assert Trajectory.load(folder).seed == 0 and fake.calls[0]["settings"] == fake.defaults
    assert cli.main(["generate", "a photo of three red apples left of a bus"]) == 0
    assert files_in(folder.with_name(f"{folder.name}-2")) == ONE


def test_every_setting_reaches_the_pipeline(fake: FakePipeline) -> None:
    words = "--mode irg --rounds 2 --seed 5 --size 64x48 --temperature 0 --max-think-tokens 7 --num-timesteps 3"
    words += " --timestep-shift 2 --cfg-text-scale 5 --cfg-img-scale 1.5 --cfg-interval 0.1,0.9 --cfg-renorm-min 0.5"
    words += " --cfg-renorm-type channel --improve-num-timesteps 6 --improve-cfg-text-scale 2 --stop-when-done"
    words += " --improve-cfg-interval 0,0.5 --improve-cfg-renorm-type global --batch-size 3 --out o --quiet"
    words += " --reflection-context prompt --reflect-temperature 0.5"
    assert cli.main(["generate", "cat", *words.split()]) == 0
    call = fake.calls[0]
    assert (call["prompts"], call["seeds"], call["batch_size"]) == (["cat"], [5], 3)
    settings = call["settings"]
    assert (settings.rounds, settings.width, settings.height, settings.temperature) == (2, 64, 48, 0.0)
    assert settings.max_think_tokens == 7 and settings.stop_when_done
    assert (settings.reflection_context, settings.reflect_temperature) == ("prompt", 0.5)
    assert settings.initial == DrawSettings(3, 2.0, 5.0, 1.5, (0.1, 0.9), "channel", 0.5)
    improving = Settings().improving
    assert settings.improving == DrawSettings(6, improving.timestep_shift, 2.0, 2.0, (0.0, 0.5), "global", 0.0)
    assert files_in(Path("o")) == ONE | {"improved-2.png"}


@pytest.mark.parametrize(("mode", "turns"), [("direct", 1), ("think", 1), ("irg", 2)])
def test_modes_and_square_size(fake: FakePipeline, mode: str, turns: int) -> None:
    assert cli.main(["generate", "cat", "--mode", mode, "--size", "48", "--out", "o"]) == 0
    trajectory = Trajectory.load("o")
    assert trajectory.mode == mode and len(trajectory.turns) == turns
    assert trajectory.image is not None and trajectory.image.size == (48, 48)
    assert read_png_settings("o/initial.png")["mode"] == mode


def test_several_prompts_make_a_gallery(fake: FakePipeline, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate", "a cat", "a dog", "-n", "2", "--seed", "3", "--out", "o"]) == 0
    assert fake.calls[0]["prompts"] == ["a cat", "a cat", "a dog", "a dog"] and fake.calls[0]["seeds"] == [3, 4, 3, 4]
    folders = ["a-cat-3", "a-cat-4", "a-dog-3", "a-dog-4"]
    assert files_in(Path("o")) == {"index.html", *(f"{folder}/{name}" for folder in folders for name in ONE)}
    out = capsys.readouterr().out
    assert "[4/4] a dog" in out and "All of them: o/index.html" in out
    page = Path("o/index.html").read_text(encoding="utf-8")
    assert all(f'href="{folder}/report.html"' in page for folder in folders)
    assert cli.main(["generate", "a cat", "a cat", "--quiet"]) == 0  # equal requests get folders of their own
    lines = capsys.readouterr().out.split()
    assert lines == ["irg-out/a-cat-0-x2/a-cat-0", "irg-out/a-cat-0-x2/a-cat-0_2"]


def test_prompts_files(fake: FakePipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    content = '\ufeffa cat\r\n\n{"prompt": "a dog", "seed": 9}\n{"prompt": "{x}"}\n'.encode()
    Path("p.txt").write_bytes(content)
    assert cli.main(["generate", "first", "--prompts-file", "p.txt", "--seed", "2", "--out", "o"]) == 0
    assert fake.calls[0]["prompts"] == ["first", "a cat", "a dog", "{x}"] and fake.calls[0]["seeds"] == [2, 2, 9, 2]
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    assert cli.main(["generate", "--prompts-file", "-", "--out", "o2"]) == 0
    assert fake.calls[1]["prompts"] == ["a cat", "a dog", "{x}"]


@pytest.mark.parametrize(("name", "delimiter"), [("p.csv", ","), ("p.TSV", "\t")])
def test_tables_of_prompts(fake: FakePipeline, name: str, delimiter: str) -> None:
    rows = [["id", "prompt", "seed"], ["1", '"a dog, ""asleep"""', "9"], ["2", '"two\nlines"', ""]]
    Path(name).write_text("\ufeff" + "\r\n".join(delimiter.join(row) for row in rows), encoding="utf-8", newline="")
    assert cli.main(["generate", "--prompts-file", name, "--seed", "2", "--out", "o"]) == 0
    assert fake.calls[0]["prompts"] == ['a dog, "asleep"', "two\nlines"] and fake.calls[0]["seeds"] == [9, 2]


def test_a_random_seed_is_told_and_repeats_the_image(fake: FakePipeline, capsys: pytest.CaptureFixture[str]) -> None:
    seeds = []
    for _ in range(2):
        assert cli.main(["generate", "a cat", "-n", "2", "--seed", "random"]) == 0
        first, second = fake.calls[-1]["seeds"]
        assert second == first + 1 and 0 <= first < 2**32
        assert f"Seed: {first}\n" in capsys.readouterr().out
        assert Trajectory.load(f"irg-out/a-cat-{first}-x2/a-cat-{first}").seed == first
        seeds.append(first)
    assert seeds[0] != seeds[1]
    assert cli.main(["generate", "a cat", "--seed", "random", "--quiet"]) == 0
    assert capsys.readouterr() == (f"irg-out/a-cat-{fake.calls[-1]['seeds'][0]}\n", "")


@pytest.mark.parametrize(
    ("size", "wanted"),
    [("16:9", (64, 32)), ("wide", (64, 32)), ("tall", (32, 64)), ("Square", (64, 64)), ("48", (48, 48))],
)
def test_sizes_by_ratio(fake: FakePipeline, size: str, wanted: tuple[int, int]) -> None:
    assert cli.main(["generate", "a cat", "--size", size, "--mode", "direct", "--out", "o"]) == 0
    image = Trajectory.load("o").image
    assert image is not None and image.size == wanted


def test_json_is_one_object_a_line_and_nothing_else_on_stdout(
    fake: FakePipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["generate", "a cat", "ein Hund 🐕", "--json", "--out", "o"]) == 0
    captured = capsys.readouterr()
    first, second = [json.loads(line) for line in captured.out.splitlines()]
    assert first["prompt"] == "a cat" and second["prompt"] == "ein Hund 🐕" and second["index"] == 1
    assert first["image"] == "o/a-cat-0/improved.png" and len(first["images"]) == 2
    assert Path(first["report"]).is_file() and Path(first["trajectory"]).is_file()
    assert first["thinking"] == T1 and first["reflection"] == T2 and first["stopped"] is False
    assert first["tokens"] == 10 and first["seconds"] == 0.6
    assert "Thinking" in captured.err


def test_quiet_says_only_where(fake: FakePipeline, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate", "a cat", "--quiet", "--out", "o"]) == 0
    assert capsys.readouterr() == ("o\n", "")


def test_text_cannot_steer_the_terminal(
    fake: FakePipeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "T1", "\x1b[2J\x07 [red]bold[/red] \x9b")
    assert cli.main(["generate", "a \x1b[31mcat", "--out", "o"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\x07" not in out and "\x9b" not in out and "[red]bold[/red]" in out


BAD_LINES = b'fine\n{"prompt": "x"\n'


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "no prompt is given"),
        ([""], "the prompt is empty"),
        (["  \n"], "the prompt is empty"),
        (["x" * 100_001], "the prompt has 100,001 bytes"),
        (["a\udcff"], "not valid Unicode"),
        (
            ["a", "--mode", "draw"],
            "Expected one of ('",
        ),
        (["--" + "x" * 90_000], " ... "),
        (["a", "--moed", "irg"], "did you mean --mode?"),
        (["a", "--seed", "x"], "--seed: expected a whole number or random, got 'x' (see"),
        (["a", "-n", "2.5"], "-n/--num-images: expected a whole number, got '2.5' (see"),
        (["a", "--temperature", "hot"], "--temperature: expected a number, got 'hot' (see"),
        (["a", "--seed", "-1"], "a seed must be a whole number"),
        (["a", "-n", "0"], "-n must be a whole number from 1"),
        (["a", "--batch-size", "0"], "--batch-size must be at least 1"),
        (["a", "--size", "big"], "size must be WIDTHxHEIGHT, one number, a ratio such as 16:9, or one of square,"),
        (["a", "--size", "64x"], "size must be WIDTHxHEIGHT"),
        (["a", "--size", "16:0"], "size must be WIDTHxHEIGHT"),
        (["a", "--size", "portrat"], "did you mean 'portrait'?"),
        (["a", "--size", "wide", "--height", "64"], "--size stands for --width and --height"),
        (["a", "--size", "0"], "must be a whole number from 1"),
        (["a", "--size", "33"], "width must be a multiple of 16"),
        (["a", "--rounds", "0"], "rounds must be"),
        (["a", "--mode", "think", "--rounds", "2"], "rounds has no meaning in mode 'think'"),
        (
            ["a", "--mode", "think", "--reflection-context", "prompt"],
            "reflection_context has no meaning in mode 'think'",
        ),
        (
            ["a", "--mode", "direct", "--reflect-temperature", "0"],
            "reflect_temperature has no meaning in mode 'direct'",
        ),
        (["a", "--mode", "direct", "--improve-num-timesteps", "5"], "improve_num_timesteps has no meaning"),
        (["a", "--no-stop-when-done", "--stop-when-done"], "exclude each other"),
        (["a", "--size", "64", "--width", "64"], "--size stands for --width and --height"),
        (["a", "--num-timesteps", "1"], "num_timesteps must be"),
        (["a", "--improve-num-timesteps", "1"], "improve_num_timesteps must be"),
        (["a", "--cfg-interval", "1,0"], "cfg_interval must be two numbers"),
        (["a", "--cfg-interval", "x"], "cfg_interval must be LOW,HIGH"),
        (["a", "--cfg-renorm-type", "x"], "--cfg-renorm-type"),
        (["a", "--prompts-file", "none.txt"], "none.txt: can't read the prompts: No such file"),
        (["--prompts-file", "empty.txt"], "empty.txt: holds no prompt"),
        (["--prompts-file", "bad.txt"], "bad.txt, line 2: starts with '{' but is not valid JSON"),
        (["--prompts-file", "latin.txt"], "latin.txt: not UTF-8 text"),
        (["--prompts-file", "field.txt"], "field.txt, line 1: unknown field 'sed'"),
        (["--prompts-file", "noprompt.txt"], "noprompt.txt, line 1: the field 'prompt' is missing"),
        (["--prompts-file", "type.txt"], "type.txt, line 1: a prompt must be text, got int"),
        (["--prompts-file", "seed.txt"], "seed.txt, line 1: a seed must be"),
        (["--prompts-file", "long.txt"], "long.txt, line 2: the prompt has"),
        (["--prompts-file", "bare.csv"], "bare.csv: the first line must name the columns, one of them prompt"),
        (["--prompts-file", "seed.csv"], "seed.csv, line 3: a seed must be"),
        (["--prompts-file", "hole.csv"], "hole.csv, line 3: the prompt is empty"),
        (["a", "--out", "taken"], "taken: holds other files (notes.txt)"),
        (["a", "--out", "taken", "--overwrite"], "taken: holds other files (notes.txt)"),
        (["a", "b", "--out", "taken"], "taken: is not empty"),
        (["a", "--out", "empty.txt"], "empty.txt: is a file"),
        (["a", "b", "--out", "empty.txt"], "empty.txt: is a file"),
        (["a", "--out", "empty.txt/deep/er"], "can't be written"),
        (["a", "--out", "/proc/none/x"], "can't be written"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    fake: FakePipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    contents = {
        "empty.txt": b"\n\n",
        "bad.txt": BAD_LINES,
        "latin.txt": b"a\nb\n\xe4\n",
        "field.txt": b'{"prompt": "x", "sed": 1}',
        "noprompt.txt": b'{"seed": 1}',
        "type.txt": b'{"prompt": 1}',
        "seed.txt": b'{"prompt": "x", "seed": 1.5}',
        "long.txt": b"a\n" + b"x" * 100_001,
        "bare.csv": b"a cat\na dog\n",
        "seed.csv": b"prompt,seed\nx,1\ny,-1\n",
        "hole.csv": b"id,prompt\n1,x\n2,\n",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    before = files_in(tmp_path)
    assert cli.main(["generate", *words]) == 2
    captured = capsys.readouterr()
    assert told in captured.err and "Traceback" not in captured.err and "'None'" not in captured.err
    assert captured.err.startswith("irg generate: error: ") and captured.err.count("\n") == 1
    assert len(captured.err) < 2100
    assert files_in(tmp_path) == before and {path.name for path in tmp_path.iterdir()} == {*contents, "taken"}


def test_an_unknown_model_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("irg.reasoning.pipeline")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["generate", "a", "--model", "no/such/model", "--quiet"]) == 2
    error = capsys.readouterr().err
    assert "no/such/model" in error and error.count("\n") == 1 and not list(tmp_path.iterdir())


def test_overwrite_replaces_an_earlier_result(fake: FakePipeline, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate", "a", "--out", "o", "--rounds", "3"]) == 0
    assert cli.main(["generate", "a", "--out", "o"]) == 2
    assert "holds an earlier result" in capsys.readouterr().err
    assert cli.main(["generate", "a", "--out", "o", "--overwrite"]) == 0
    assert files_in(Path("o")) == ONE
    assert cli.main(["generate", "a", "b", "--out", "several"]) == 0
    assert cli.main(["generate", "a", "b", "--out", "several", "--overwrite"]) == 0
    assert len(files_in(Path("several"))) == 9


def test_ctrl_c_keeps_what_is_finished(fake: FakePipeline, capsys: pytest.CaptureFixture[str]) -> None:
    fake.faults = {2: KeyboardInterrupt()}
    assert cli.main(["generate", "a", "b", "c", "d", "--out", "o"]) == 130
    assert files_in(Path("o")) == {"index.html", *(f"{name}/{file}" for name in ("a-0", "b-0") for file in ONE)}
    assert "interrupted; 2 of 4 results are kept in o" in capsys.readouterr().err
    assert fake.closed
    fake.faults = {0: KeyboardInterrupt()}
    assert cli.main(["generate", "a", "--out", "p"]) == 130
    assert not Path("p").exists() and "interrupted\n" in capsys.readouterr().err


def test_a_request_that_fails_is_named_and_the_others_are_kept(
    fake: FakePipeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = FakePipeline._request

    def request(self: FakePipeline, i: int, prompt: str, seed: int, settings: Settings) -> Iterator[Event]:
        if prompt == "b":
            yield Failed(i, GenerationError(i, prompt, MemoryError("out of \x1b[31mmemory")))
        else:
            yield from real(self, i, prompt, seed, settings)

    monkeypatch.setattr(FakePipeline, "_request", request)
    assert cli.main(["generate", "a", "b", "c", "--out", "o", "--quiet"]) == 2
    told = capsys.readouterr()
    assert told.err.splitlines() == [
        "irg generate: request 1 ('b') failed: out of �[31mmemory",
        "irg generate: error: 1 of 3 requests failed",
    ]
    assert files_in(Path("o")) == {"index.html", *(f"{name}/{file}" for name in ("a-0", "c-0") for file in ONE)}


def test_a_full_disk_keeps_what_is_finished(
    fake: FakePipeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = Trajectory.save

    def save(self: Trajectory, folder: Path, overwrite: bool = False) -> Path:
        if self.prompt == "b":
            raise OSError(errno.ENOSPC, "No space left on device", str(folder))
        return real(self, folder, overwrite)

    monkeypatch.setattr(Trajectory, "save", save)
    assert cli.main(["generate", "a", "b", "c", "--out", "o"]) == 2
    assert files_in(Path("o")) == {f"a-0/{file}" for file in ONE}
    assert capsys.readouterr().err == "irg generate: error: o/b-0: No space left on device\n"


def test_debug_shows_the_traceback(fake: FakePipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IRG_DEBUG", "1")
    with pytest.raises(ValueError, match="empty"):
        cli.main(["generate", ""])


def test_help_version_and_unknown_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == cli.main(["--help"]) == 0
    assert "generate" in capsys.readouterr().out
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"irg {__version__}\n"
    assert cli.main(["genrate"]) == 2
    assert "did you mean 'generate'?" in capsys.readouterr().err
    with pytest.raises(SystemExit) as left:
        cli.main(["generate", "--help"])
    assert left.value.code == 0 and "--improve-cfg-interval" in capsys.readouterr().out


def test_train_names_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("irg.learning.recipe")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: m\ndata: [d]\nout: o\nstpes: 5\n")
    assert cli.main(["train", str(recipe)]) == 2
    error = capsys.readouterr().err
    assert "recipe.yaml: stpes: unknown field (did you mean 'steps'?)" in error and error.count("\n") == 1
    assert cli.main(["train", str(tmp_path / "none.yaml")]) == 2
    assert "can't read the recipe" in capsys.readouterr().err
    assert cli.main(["train", "--steps", "5"]) == 2
    assert "the recipe's file comes first" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A photo of 3 cats!", "a-photo-of-3-cats"),
        ("../../etc/passwd", "etc-passwd"),
        ("🐕", "image"),
        ("Ein großer Bär", "ein-großer-bär"),
        ("x" * 500, "image"),
        ("one " * 60, "one-one-one-one-one-one-one-one-one-one-one-one"),
    ],
)
def test_folder_names(prompt: str, name: str) -> None:
    assert slug(prompt) == name


SCRIPT = """
import signal, sys, threading
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with it ignored
from tests_cli import FakePipeline
from irg.cli import main as cli
from irg.cli import running
pipeline = FakePipeline()
def wait(what):
    print(what, file=sys.stderr, flush=True)
    threading.Event().wait()
def events(prompts, seeds, settings):
    yield from pipeline._request(0, prompts[0], seeds[0], settings)
    try:
        wait("working")
    finally:
        CLEANUP
pipeline._events = events
running.load = lambda *_: pipeline
sys.argv = ["irg", "generate", "a", "b", "--out", "o"]
sys.exit(cli.main())
"""


def interrupted(tmp_path: Path, cleanup: str, times: int) -> tuple[int, str]:
    """Exit code and errors of a command that gets Ctrl-C as often as it says on standard error what it does."""
    (tmp_path / "tests_cli.py").write_text(Path(__file__).read_text(encoding="utf-8"), encoding="utf-8")
    script = SCRIPT.replace("CLEANUP", cleanup)
    process = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for _ in range(times):
        line = process.stderr.readline()
        assert line in ("working\n", "cleaning up\n"), line + process.stderr.read()
        process.send_signal(signal.SIGINT)
    error = process.stderr.read()
    return process.wait(), error


def test_a_real_ctrl_c(tmp_path: Path) -> None:
    code, error = interrupted(tmp_path, "pass", 1)
    assert (code, error) == (130, "irg generate: interrupted; 1 of 2 results are kept in o\n")
    assert files_in(tmp_path / "o") == {"index.html", *(f"a-0/{file}" for file in ONE)}


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    """The first one waits for what must be put in order; that may take long."""
    code, error = interrupted(tmp_path, 'wait("cleaning up")', 2)
    assert code == -signal.SIGINT and error == ""


@pytest.mark.parametrize("device", ["mps", "cpu,xpu"])
def test_devices_that_are_not_supported_are_refused_before_anything_is_loaded(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["generate", "a", "--device", device, "--model", "no/such/model", "--quiet"]) == 2
    error = capsys.readouterr().err
    assert f"device {device.split(',')[-1]!r} is not supported: models run on cpu or cuda" in error


def test_a_recipe_with_an_old_name_works_and_prints_the_new_one(tmp_path: Path) -> None:
    pytest.importorskip("datasketch", reason="needs the extra data")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "out: o\nprompts: {sources: [{kind: file, path: p.txt}]}\ndraft: {kind: model, options: {}, batch: 2}\n"
    )
    (tmp_path / "p.txt").write_text("a cat\n")
    code = "import sys; from irg.cli.main import main; sys.exit(main() or 'torch' in sys.modules)"
    words = [sys.executable, "-c", code, "data", "status", str(recipe)]  # which does not wait for torch
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "draft.batch is now called batch_size; the old name goes with the next version\n"


@pytest.mark.parametrize("words", [["--help"], ["generate", "--help"], ["generate", ""], ["train", "--help"]])
def test_help_and_mistakes_do_not_wait_for_torch(words: list[str]) -> None:
    code = f"""
import sys
from irg.cli.main import main
try: main({words!r})
except SystemExit: pass
sys.exit("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0


def test_a_reader_that_goes_away_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from irg.cli.main import main; sys.exit(main(['--help']))"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write)
    assert "Traceback" not in done.stderr
