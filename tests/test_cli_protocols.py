"""Protocols on the command line: mistakes are one line before anything is loaded; a run records which one it was."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from irg.cli import main as cli
from irg.cli.arguments import ModelOptions
from irg.files import write_json
from irg.model.weights.checkpoint import LoadedModel
from irg.model.weights.initialize import write_folder
from irg.model.weights.profile import read_profile
from irg.reasoning import pipeline
from irg.reasoning.pipeline import IRGPipeline
from irg.reasoning.prompts import BAGEL_PROFILE
from irg.reasoning.protocols.known_models import usual_weights
from irg.reasoning.protocols.official_texts import is_cached
from irg.reasoning.protocols.pinned_texts import PINNED_TEXTS
from irg.reasoning.protocols.selection import find_model

COMMANDS = (
    ("generate", "a cup"),
    ("improve", "red.png", "--prompt", "a cup"),
    ("edit", "red.png", "make it blue"),
    ("ask", "red.png", "what is it?"),
    ("bench", "run", "geneval", "--prompts", "prompts.jsonl"),
)


@pytest.fixture
def folder(tiny_loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model's folder in the current one, where nothing may be downloaded and no weights are read."""
    from PIL import Image

    (tmp_path / "model").mkdir()
    write_folder(tmp_path / "model", tiny_loaded.config)
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    entry = {"tag": "single_object", "include": [{"class": "cup", "count": 1}], "prompt": "a photo of a cup"}
    (tmp_path / "prompts.jsonl").write_text(json.dumps(entry) + "\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IRG_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("IRG_DEBUG", raising=False)
    monkeypatch.setattr(pipeline, "load_with_plan", lambda *_: pytest.fail("the weights are being read"))
    return tmp_path / "model"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: words[0])
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ("--protocol", "umm-reflektion"),
            "no protocol 'umm-reflektion' (did you mean 'umm-reflection'?); there are bagel",
        ),
        (("--system-prompt-file", "none.txt"), "system prompt none.txt: can't be read: No such file or directory"),
        (("--protocol", "r3", "--offline", "--system-prompt-file", "empty.txt"), "empty.txt: has no text"),
    ],
)
def test_a_mistake_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...], words: tuple[str, ...], told: str
) -> None:
    Path("empty.txt").write_text("\n")
    before = sorted(Path().iterdir())
    assert cli.main([*command, "--model", "model", "--device", "cpu", *words]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1 and error.startswith(f"irg {command[0]}: error: ")
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize("command", COMMANDS[:2], ids=lambda words: words[0])
def test_a_text_that_can_not_be_had(folder: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]) -> None:
    assert cli.main([*command, "--model", "model", "--device", "cpu", "--protocol", "rvr", "--offline"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert (
        "error: not in the cache, and downloading is off (offline): 1 text (187 characters) in inferencer.py" in error
    )
    assert not Path("irg-out").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--protocol", "rvr", "--mode", "think"), "protocol 'rvr' has no mode 'think'; it has direct, irg"),
        (("--protocol", "rvr", "--rounds", "2"), "protocol 'rvr' has at most 1 rounds, got 2"),
        (
            ("--protocol", "umm-reflection", "--size", "64x32"),
            "protocol 'umm-reflection' draws squares only, got 64x32",
        ),
        (("--protocol", "r3", "--look", "vit"), "look has no meaning in protocol 'r3'"),
        (
            ("--protocol", "bagel", "--mode", "irg"),
            "protocol 'bagel' does not reflect by itself; its loop needs a critic",
        ),
    ],
)
def test_what_a_protocol_has_not(
    folder: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], told: str
) -> None:
    assert cli.main(["generate", "a cup", "--model", "model", "--device", "cpu", "--offline", *words]) == 2
    assert told in capsys.readouterr().err.splitlines()[-1]


def test_a_system_prompt_of_ones_own_needs_no_official_one(folder: Path) -> None:
    Path("mine.txt").write_text("My words.\n")
    given = ModelOptions("model", device="cpu", protocol="bagel", system_prompt_file="mine.txt", offline=True)
    loading = given.for_pipeline()
    assert loading["system_prompt"] == "My words." and loading["protocol"] == "bagel" and loading["offline"] is True
    with pytest.raises(pytest.fail.Exception, match="the weights are being read"):  # past the texts
        IRGPipeline.from_pretrained(**loading, options={"mode": "think"})


def test_the_weights_of_known_models(folder: Path, tmp_path: Path) -> None:
    told: list[str] = []
    refiner = tmp_path / "RvR-7B-MoT"
    folder.rename(refiner)
    assert find_model(refiner, None, None, told.append) == (refiner, None) and not told  # it has no refiner
    (refiner / "rvr.safetensors").write_bytes(b"")
    assert find_model(refiner, None, None, told.append) == (refiner, "rvr")
    assert told == ["Weights: rvr, as this model is run with them; --weights takes others: ema"]
    assert find_model(refiner, None, "bagel", told.append) == (refiner, None)
    assert find_model(refiner, "ema", None, told.append) == (refiner, "ema") and len(told) == 1
    assert usual_weights("ThinkMorph/ThinkMorph-7B@main", Path("x")) == "model"
    assert usual_weights("someone/else", Path("x")) is None


def test_a_run_records_its_protocol(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()
    monkeypatch.chdir(folder.parent)
    words = ["--model", "model", "--device", "cpu", "--size", "32", "--num-timesteps", "2", "-n", "1", "--out", "run"]
    command: list[Any] = ["bench", "run", "geneval", "--prompts", "prompts.jsonl", "--mode", "direct", *words]
    assert cli.main([*command, "--protocol", "unicot"]) == 0, capsys.readouterr().err
    record = json.loads(Path("run/run.json").read_text())
    assert (record["protocol"], record["protocol_reason"]) == ("unicot", "it was asked for")
    assert cli.main([*command, "--resume"]) == 2
    assert 'can\'t resume, protocol was "unicot" and is "irg"' in capsys.readouterr().err


def test_info_tells_protocol_and_texts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["model", "info", "model"]) == 0
    assert capsys.readouterr().out.endswith("\nprotocol: irg, as nothing says otherwise\n")
    known = folder.rename("RvR-7B-MoT")
    texts = known.parent / "cache" / "texts"
    assert cli.main(["model", "info", str(known), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["protocol"]
    assert (told["name"], told["reason"]) == ("rvr", "JiayiGuo821/RvR-7B-MoT was trained for it")
    assert told["texts"]["system"]["length"] == 187 and told["texts"]["system"]["cached"] is False
    texts.mkdir(parents=True)
    (texts / f"{PINNED_TEXTS['rvr']['system'].sha256}.txt").write_text("damaged")
    assert cli.main(["model", "info", str(known)]) == 0
    place = "https://raw.githubusercontent.com/LeapLabTHU/RvR/79d803e0ea5c1d39195cd209dba2e4313bfd9234/"
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "protocol: rvr, as JiayiGuo821/RvR-7B-MoT was trained for it",
        f"  texts read from {place}inferencer.py when they are needed: system",
        f"  texts read from {place}app.py when they are needed: prompt_sentence",
    ]
    write_json(known / "irg.json", {"name": "m", "protocol": "gone"})
    assert cli.main(["model", "info", str(known)]) == 0
    assert "protocol: UNUSABLE: " in (out := capsys.readouterr().out) and "no protocol 'gone'" in out


def test_a_cached_text_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = replace(PINNED_TEXTS["rvr"]["system"], sha256=hashlib.sha256(b"words").hexdigest())
    assert not is_cached(text, folder)
    (folder / "texts").mkdir()
    (folder / "texts" / f"{text.sha256}.txt").write_bytes(b"words")
    assert is_cached(text, folder)


def test_a_converted_folder_keeps_the_protocol(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = folder.rename("RvR-7B-MoT")
    (known / "ema.safetensors").rename(known / "rvr.safetensors")
    assert cli.main(["model", "convert", str(known), "ours", "--layout", "irg"]) == 0
    profile = read_profile(Path("ours"))
    assert profile is not None and profile.protocol == "rvr" and profile.system_prompt == BAGEL_PROFILE.system_prompt
    assert cli.main(["model", "convert", "ours", "again"]) == 0
    assert read_profile(Path("again")) == profile
    assert cli.main(["model", "info", "again"]) == 0
    assert "protocol: rvr, as irg.json in the model's folder names it\n" in capsys.readouterr().out
    known.rename("of-nobody")
    assert cli.main(["model", "convert", "of-nobody", "plain"]) == 0
    assert read_profile(Path("plain")) is None
