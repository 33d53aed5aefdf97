"""What other libraries will download from the hub is said first; an unreachable hub is told at once."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from irg.hub_downloads import PATIENCE_S, only_cached

FILES = {
    "config.json": 1_000,
    "model-1.safetensors": 4_000_000_000,
    "model-2.safetensors": 500_000_000,
    "pytorch_model.bin": 4_500_000_000,
    "unet/model.safetensors": 100_000_000,
}


class FakeHub:
    """A hub with one model; counts how often it is asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked, self.error, self.cached = 0, None, set[str]()
        self.snapshot: Path | None = None
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: self)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.snapshot_download)
        monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", self.in_cache)

    def model_info(self, name: str, files_metadata: bool, timeout: float) -> Any:
        self.asked += 1
        assert (name, files_metadata, timeout) == ("owner/name", True, PATIENCE_S)
        if self.error is not None:
            raise self.error
        siblings = [SimpleNamespace(rfilename=file, size=size) for file, size in FILES.items()]
        return SimpleNamespace(sha="abc", siblings=siblings)

    def in_cache(self, name: str, file: str, revision: str) -> str | None:
        assert (name, revision) == ("owner/name", "abc")
        return f"/cache/{file}" if file in self.cached else None

    def snapshot_download(self, name: str, local_files_only: bool) -> str:
        assert local_files_only
        if self.snapshot is None:
            raise FileNotFoundError(name)
        return str(self.snapshot)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    return FakeHub(monkeypatch)


def test_a_folder_is_taken_as_it_is(hub: FakeHub, tmp_path: Path) -> None:
    assert only_cached(str(tmp_path)) is False
    assert hub.asked == 0


def test_what_is_missing_is_said_with_its_size(hub: FakeHub) -> None:
    said: list[str] = []
    assert only_cached("owner/name", said.append) is False
    hub.cached = {"model-1.safetensors"}
    only_cached("owner/name", said.append)
    assert [line.partition(" of ")[0] for line in said] == ["Downloading up to 4.6 GB", "Downloading up to 0.6 GB"]
    assert constants.ENDPOINT in said[0] and constants.HF_HUB_CACHE in said[0]
    hub.cached = {file for file in FILES if file.endswith("safetensors")}
    only_cached("owner/name", said.append)
    assert len(said) == 2


def test_a_hub_that_does_not_answer_is_asked_once(hub: FakeHub, tmp_path: Path) -> None:
    hub.error = ConnectionError("Name or service not known")
    with pytest.raises(ValueError, match=r"owner/name: http.* can't be reached \(Name .*hf download owner/name"):
        only_cached("owner/name")
    hub.snapshot = tmp_path
    with pytest.raises(ValueError, match="the cache does not have it"):  # settings without weights
        only_cached("owner/name")
    assert hub.asked == 2
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "model.safetensors").touch()
    assert only_cached("owner/name") is True


def test_offline_takes_the_cache_and_never_asks(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "model.safetensors").touch()
    hub.snapshot = tmp_path
    assert only_cached("owner/name") is True
    hub.snapshot = None
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set"):
        only_cached("owner/name")
    assert hub.asked == 0


@pytest.mark.parametrize("name", ["/no/folder", "./here/nothing", "~/model", "a/b/c", "name"])
def test_what_is_no_hub_id(hub: FakeHub, name: str) -> None:
    with pytest.raises(ValueError, match="neither a folder that is here nor a hub id"):
        only_cached(name)
    assert hub.asked == 0
