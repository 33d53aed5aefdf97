"""Which protocol a model gets, and why."""

from pathlib import Path

import pytest

from irg.reasoning.protocols.known_models import KNOWN_MODELS, known_id, protocol_of
from irg.reasoning.protocols.pinned_texts import PINNED_TEXTS

CACHE = "/c/hub/models--{}/snapshots/" + "a" * 40


@pytest.mark.parametrize(
    "name, folder, protocol",
    [
        ("YijiaFan/UMM-Reflection-BAGEL-RL", "/m/x", "umm-reflection"),
        ("YijiaFan/UMM-Reflection-BAGEL-SFT", "/m/x", "umm-reflection"),
        ("JiayiGuo821/RvR-7B-MoT", "/m/x", "rvr"),
        ("Alex11556666/UniReason", "/m/x", "unireason"),
        ("Fr0zencr4nE/UniCoT-7B-MoT", "/m/x", "unicot"),
        ("Fr0zencr4nE/UniCoT-7B-MoT-v0.2", "/m/x", "unicot-v0.2"),
        ("ThinkMorph/ThinkMorph-7B", "/m/x", "thinkmorph"),
        ("ByteDance-Seed/BAGEL-7B-MoT", "/m/x", "bagel"),
        ("bytedance-seed/bagel-7b-mot", "/m/x", "bagel"),
        ("ThinkMorph/ThinkMorph-7B@v1.0", "/m/x", "thinkmorph"),
        ("https://huggingface.co/ThinkMorph/ThinkMorph-7B", "/m/x", "thinkmorph"),
        ("https://hub.example.org/Fr0zencr4nE/UniCoT-7B-MoT-v0.2/tree/main?x=1", "/m/x", "unicot-v0.2"),
        ("hf.co/ThinkMorph/ThinkMorph-7B?download=true", "/m/x", "thinkmorph"),
        ("hf://ThinkMorph/ThinkMorph-7B@abc", "/m/x", "thinkmorph"),
        ("/data/ThinkMorph-7B/", "/data/ThinkMorph-7B/", "thinkmorph"),
        ("x", CACHE.format("Fr0zencr4nE--UniCoT-7B-MoT-v0.2"), "unicot-v0.2"),
        ("x", CACHE.format("Alex11556666--UniReason") + "/results/stage_1_align", "unireason"),
        ("someone/BAGEL-7B-MoT", CACHE.format("someone--BAGEL-7B-MoT"), "irg"),
        ("ThinkMorph/ThinkMorph-7B-extra", "/m/x", "irg"),
        ("mini", "/m/mini", "irg"),
        ("/", "/", "irg"),
    ],
)
def test_the_protocol_of_a_name_and_folder(name: str, folder: str, protocol: str) -> None:
    found, reason = protocol_of(name, Path(folder))
    assert found == protocol
    assert (reason == "nothing says otherwise") == (protocol == "irg")


def test_a_relative_folder_has_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "RvR-7B-MoT"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert known_id(".", Path(".")) == "JiayiGuo821/RvR-7B-MoT"


def test_the_order_of_what_decides(tmp_path: Path) -> None:
    assert protocol_of("mine", tmp_path) == ("irg", "nothing says otherwise")
    (tmp_path / "rvr.safetensors").touch()
    assert protocol_of("mine", tmp_path) == ("rvr", "the model's folder has rvr.safetensors")
    known = "ThinkMorph/ThinkMorph-7B"
    assert protocol_of(known, tmp_path) == ("thinkmorph", f"{known} was trained for it")
    assert protocol_of(known, tmp_path, "mine") == ("mine", "irg.json in the model's folder names it")


def test_the_table_can_be_used() -> None:
    names = [known.partition("/")[2].lower() for known in KNOWN_MODELS]
    assert len(set(names)) == len(names), "a local folder is known by its name alone"
    for model in KNOWN_MODELS.values():
        assert model.weights in ("ema", "model", "rvr")
        assert model.protocol in PINNED_TEXTS
