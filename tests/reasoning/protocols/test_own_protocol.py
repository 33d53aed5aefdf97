"""The package that docs/protocols.md shows works: taken out of the page, installed, and used."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from plugin_package import ROOT, installed_here

from irg import registry
from irg.cli.main import main
from irg.reasoning.protocols.base import find
from irg.reasoning.settings import Settings, with_options

SMALL = ("--model", "mini", "--device", "cpu", "--num-timesteps", "2", "--improve-num-timesteps", "2", "--size", "64")


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with installed_here("protocols", "irg_sentence_protocol", tmp_path_factory.mktemp("plugin")):
        yield


def test_a_protocol_of_ones_own_draws(tmp_path: Path) -> None:
    out = tmp_path / "drawn"
    words = ("a red cup", *SMALL, "--protocol", "sentence", "--max-reflect-tokens", "5", "--out", str(out))
    assert main(["generate", *words]) == 0
    trajectory = json.loads((out / "trajectory.json").read_text())
    assert trajectory["protocol"] == "sentence" and trajectory["settings"]["rounds"] == 2
    first, *later = trajectory["turns"]
    assert first["thinking"] is None and [turn["tokens"] <= 5 for turn in later] == [True, True]
    assert [turn["details"]["length"] for turn in later] == [len(turn["thinking"]) for turn in later]
    assert (out / "improved-2.png").is_file()


def test_it_improves_an_image_and_has_its_own_modes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64), "red").save("red.png")
    words = ("--model", "mini", "--device", "cpu", "--num-timesteps", "2", "--rounds", "1", "--max-reflect-tokens", "5")
    assert main(["improve", "red.png", "--prompt", "a cup", *words, "--protocol", "sentence", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["images"]) == 2
    assert main(["generate", "a cup", *SMALL[:4], "--protocol", "sentence", "--mode", "think"]) == 2
    assert "protocol 'sentence' has no mode 'think'; it has direct, irg" in capsys.readouterr().err


def test_its_name_is_suggested(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "a cup", "--protocol", "sentense"]) == 2
    error = capsys.readouterr().err
    assert "no protocol 'sentense' (did you mean 'sentence'?)" in error and error.count("\n") == 1


def test_the_page_tells_the_settings() -> None:
    page = (ROOT / "docs" / "protocols.md").read_text(encoding="utf-8")
    table = page.partition("| protocol | rounds |")[2].partition("\n\n")[0]
    rows = {cells[1]: cells for line in table.splitlines()[2:] if (cells := re.split(r" *\| *", line.replace("`", "")))}
    assert sorted([*rows, "sentence"]) == sorted({*registry.names(registry.PROTOCOLS), "sentence"})
    for name, (_, _, rounds, tokens, _, later, *_) in rows.items():
        own = with_options(Settings(), find(name).settings)
        assert int(rounds) == own.rounds, name
        wanted = [str(n) for n in (own.max_think_tokens, own.max_reflect_tokens) if n is not None]
        assert tokens == ("" if name == "rvr" else ", ".join(wanted)), name
        s = own.improving if name != "thinkmorph" else own.initial
        low, high = s.cfg_interval
        told = f"{s.cfg_text_scale}, {s.cfg_img_scale}; ({low:g}, {high:g}]; {s.cfg_renorm_type}"
        assert later.startswith("the same" if name == "thinkmorph" else told), name
