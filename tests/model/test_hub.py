"""Hub models: the right files, the size first, the cache's word offline. The hub itself is played by fakes, once by a
server that the library's own downloads go to.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from hub_server import hub_server
from huggingface_hub import constants

from irg.model.weights.checkpoint import LoadedModel, load_model, save_model
from irg.model.weights.folders import model_folder
from irg.model.weights.hub import needed, snapshot
from irg.model.weights.hub_names import HubName, is_repo_id, parse_hub_name

SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
BAGEL = dict.fromkeys(["README.md", "config.json", "generation_config.json", "llm_config.json", "vit_config.json"], 900)
BAGEL |= dict.fromkeys(["tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"], 2_776_833)
BAGEL |= {"ae.safetensors": 335_304_388, "ema.safetensors": 29_214_000_000, "assets/teaser.webp": 5_000_000}
BAGEL |= {"model.safetensors.index.json": 120_000} | dict.fromkeys(SHARDS, 14_000_000_000)
INDEX = {"model.safetensors.index.json": SHARDS}


def test_repo_ids() -> None:
    assert is_repo_id("ByteDance-Seed/BAGEL-7B-MoT") and is_repo_id("a/b.c_d")
    for name in ("mini", "/a/b", "a/b/c", "../b", "a/..", "~/b", "a/ b", "a\\b", "./b", ""):
        assert not is_repo_id(name), name


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("a/b", HubName("a/b")),
        ("a/b@v1.0", HubName("a/b", "v1.0")),
        ("a/b@refs/pr/3", HubName("a/b", "refs/pr/3")),
        ("https://huggingface.co/a/b", HubName("a/b")),
        ("https://huggingface.co/a/b/", HubName("a/b")),
        ("http://hf.co/a/b?library=x#y", HubName("a/b")),
        ("huggingface.co/a/b/tree/main", HubName("a/b", "main")),
        ("https://huggingface.co/a/b/tree/refs%2Fpr%2F3", HubName("a/b", "refs/pr/3")),
        ("https://huggingface.co/a/b/tree/main/results/stage_1", HubName("a/b", "main", "results/stage_1")),
        ("https://huggingface.co/a/b/blob/main/ema.safetensors", HubName("a/b", "main")),
        ("https://huggingface.co/a/b/resolve/c0ffee/sub/ema.safetensors", HubName("a/b", "c0ffee", "sub")),
        ("mini", None),
        ("a/b/c", None),
        ("/a/b@c", None),
        ("a@b/c", None),
    ],
)
def test_names_of_hub_models(name: str, parsed: HubName | None) -> None:
    assert parse_hub_name(name) == parsed


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("https://example.com/a/b", "not an address of the model hub"),
        ("ftp://huggingface.co/a/b", "not an address of the model hub"),
        ("https://huggingface.co/datasets/a/b", "not the address of a model"),
        ("https://huggingface.co/a", "not the address of a model"),
        ("https://huggingface.co/a/b/tree", "not the address of a model"),
        ("https://huggingface.co/a/b/settings", "not the address of a model"),
        ("https://huggingface.co/a/b/tree/main/../../x", "not the address of a model"),
        ("a/b@", "is no revision"),
        ("a/b@x y", "is no revision"),
        ("a/b@../x", "is no revision"),
    ],
)
def test_what_is_no_name_of_a_hub_model(name: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        model_folder(name)


def test_a_mirrors_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror.local:8080")
    assert parse_hub_name("http://mirror.local:8080/a/b/tree/v2") == HubName("a/b", "v2")


def test_only_one_set_of_weights_is_needed() -> None:
    averaged = needed("x/y", BAGEL, lambda _: pytest.fail("an index that is not needed was read"), "ema")
    assert "ema.safetensors" in averaged and "ae.safetensors" in averaged and "merges.txt" in averaged
    assert not [name for name in averaged if name.startswith(("model-", "assets", "README"))]
    plain = needed("x/y", BAGEL, INDEX.__getitem__, "model")
    assert set(INDEX["model.safetensors.index.json"]) < set(plain) and "ema.safetensors" not in plain


def test_a_fine_tune_that_is_to_be_completed_needs_no_autoencoder() -> None:
    files = needed("x/y", {"ema.safetensors": 9, "README.md": 5}, INDEX.__getitem__, partial=True)
    assert files == ["ema.safetensors"]
    with pytest.raises(ValueError, match=r"no ae.safetensors; .* irg model convert x/y OUT --base BASE"):
        needed("x/y", {"ema.safetensors": 9}, INDEX.__getitem__)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({name: None for name in BAGEL if name != "ae.safetensors"} | {"pytorch_model.bin": 5}, "is a pickle"),
        ({"ae.safetensors": None}, r"no ae.safetensors"),
        ({"model-00002-of-00002.safetensors": None, "ema.safetensors": None}, "not in the repository"),
        ({SHARDS[1]: None, "ema.safetensors": None, "model.safetensors.index.json": None}, "shard 2 of 2"),
    ],
)
def test_incomplete_repositories_are_refused_before_a_download(change: dict[str, Any], told: str) -> None:
    sizes = {name: size for name, size in (BAGEL | change).items() if size is not None}
    with pytest.raises(ValueError, match=told):
        needed("x/y", sizes, INDEX.__getitem__)


class FakeHub:
    """A hub with one repository, whose files are those of a folder."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.folder, self.calls, self.cache = folder, list[tuple[str, Any]](), set[str]()
        self.fault: Callable[[], Exception] | None = None
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: self)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.snapshot_download)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repo, name, revision: str(folder / name))
        monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", self.cached)

    def model_info(self, repo: str, revision: str | None, files_metadata: bool) -> Any:
        assert files_metadata
        self.calls.append(("info", repo))
        if self.fault:
            raise self.fault()
        names = [SimpleNamespace(rfilename=p.name, size=p.stat().st_size) for p in self.folder.iterdir()]
        return SimpleNamespace(sha="c0ffee", siblings=names)

    def cached(self, repo: str, name: str, revision: str) -> str | None:
        return str(self.folder / name) if name in self.cache else None

    def snapshot_download(self, repo: str, **how: Any) -> str:
        self.calls.append(("snapshot", how))
        if how.get("local_files_only") and not self.cache:
            raise FileNotFoundError("nothing cached")
        return str(self.folder)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_loaded: LoadedModel) -> FakeHub:
    folder = tmp_path / "repository"
    save_model(folder, tiny_loaded.config, tiny_loaded.model, tiny_loaded.autoencoder)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_text("x" * 1000)
    return FakeHub(monkeypatch, folder)


def test_size_is_told_before_the_download(hub: FakeHub) -> None:
    told: list[str] = []

    def say(line: str) -> None:
        assert hub.calls[-1][0] == "info", "told before the download starts"
        told.append(line)

    folder = model_folder("someone/tiny", say=say)
    load_model(folder)
    files = ("config.json", "weights.safetensors", "ae.safetensors", "tokenizer.json")
    size = sum((hub.folder / name).stat().st_size for name in files)
    assert f"{size / 1e6:.1f} MB (4 files) of someone/tiny" in told[0] and len(told) == 1
    assert hub.calls[-1] == (
        "snapshot",
        {"revision": None, "allow_patterns": list(hub.calls[-1][1]["allow_patterns"])},
    )
    assert set(hub.calls[-1][1]["allow_patterns"]) == set(files)


def test_a_revision_and_a_folder_in_the_repository(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """UniReason's checkpoints of two stages are in folders of one repository."""
    whole = hub.folder
    (whole / "stage_1").mkdir()
    for path in [path for path in whole.iterdir() if path.is_file()]:
        path.rename(whole / "stage_1" / path.name)
    sizes = {f"stage_1/{path.name}": path.stat().st_size for path in (whole / "stage_1").iterdir()}
    siblings = [SimpleNamespace(rfilename=name, size=size) for name, size in sizes.items()]
    info = SimpleNamespace(sha="c0ffee", siblings=[*siblings, SimpleNamespace(rfilename="ema.safetensors", size=9)])
    monkeypatch.setattr(hub, "model_info", lambda repo, revision, files_metadata: info)
    told: list[str] = []
    folder = model_folder("https://huggingface.co/someone/tiny/tree/v2/stage_1", say=told.append)
    assert folder == whole / "stage_1" and "(4 files) of someone/tiny@v2/stage_1" in told[0]
    how = hub.calls[-1][1]
    assert how["revision"] == "v2" and all(name.startswith("stage_1/") for name in how["allow_patterns"])
    load_model(folder)


def test_what_is_cached_is_not_announced(hub: FakeHub) -> None:
    told: list[str] = []
    hub.cache = {p.name for p in hub.folder.iterdir()} - {"ae.safetensors"}
    snapshot(HubName("someone/tiny"), say=told.append)
    assert "(1 file)" in told[0]
    hub.cache.add("ae.safetensors")
    snapshot(HubName("someone/tiny"), say=told.append)
    assert len(told) == 1


def test_offline_takes_the_cache_and_never_calls(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"HF_HUB_OFFLINE is set.*hf download someone/tiny"):
        snapshot(HubName("someone/tiny"))
    hub.cache = {"config.json"}
    assert snapshot(HubName("someone/tiny")) == hub.folder
    assert [name for name, _ in hub.calls] == ["snapshot", "snapshot"]
    assert all(how["local_files_only"] for _, how in hub.calls)


def test_without_a_connection_the_cache_serves(hub: FakeHub) -> None:
    hub.fault = lambda: OSError("no route to host")
    with pytest.raises(ValueError, match="no route to host"):
        snapshot(HubName("someone/tiny"))
    hub.cache = {"config.json"}
    assert snapshot(HubName("someone/tiny")) == hub.folder


def test_a_partly_cached_snapshot_is_used_offline(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library counts files that loading does not need; it is the loader who says what is missing."""

    def incomplete(repo: str, **how: Any) -> str:
        error = FileNotFoundError("incomplete")
        error.snapshot_path = str(hub.folder)  # type: ignore[attr-defined]
        raise error

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", incomplete)
    assert snapshot(HubName("someone/tiny")) == hub.folder


def test_the_hubs_refusal_is_told_in_one_line(hub: FakeHub) -> None:
    from huggingface_hub.errors import HfHubHTTPError

    class NotFound(HfHubHTTPError):
        def __init__(self) -> None:
            Exception.__init__(self, "404 Client Error.\n\nRepository Not Found")

    hub.fault = NotFound
    with pytest.raises(ValueError, match="hub model 'someone/none': 404 Client Error") as caught:
        snapshot(HubName("someone/none"))
    assert "\n" not in str(caught.value) and [name for name, _ in hub.calls] == ["info"]


def test_a_hub_that_is_down_leaves_the_cache(hub: FakeHub) -> None:
    from huggingface_hub.errors import HfHubHTTPError

    class Down(HfHubHTTPError):
        def __init__(self) -> None:
            Exception.__init__(self, "503 Server Error")
            self.response = SimpleNamespace(status_code=503)  # type: ignore[assignment]

    hub.fault, hub.cache = Down, {"config.json"}
    assert snapshot(HubName("someone/tiny")) == hub.folder


_LOADS = """
import sys
from irg.model.weights.checkpoint import load_model
from irg.model.weights.folders import model_folder
for name in sys.argv[1:]:
    try:
        folder = model_folder(name, say=print)
    except ValueError as error:
        print(error)
    else:
        load_model(folder)
        print(sorted(path.name for path in folder.iterdir()))
"""


def test_the_library_downloads_and_finds_it_offline(hub: FakeHub, tmp_path: Path) -> None:
    """By the real huggingface_hub: a broken connection is tried again; offline the cache is enough."""
    cache = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}

    def loaded(*names: str, **environment: str) -> list[str]:
        words = [sys.executable, "-c", _LOADS, *names]
        done = subprocess.run(words, env=os.environ | cache | environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    with hub_server(hub.folder, cut="weights.safetensors") as (url, seen):
        names = ("someone/tiny", "someone/none", "someone/tiny@v2")
        announced, first, unknown, tagged = loaded(*names, HF_HUB_OFFLINE="0", HF_ENDPOINT=url)
        paths = [what for what, _ in seen]
    assert any(path.endswith("/api/models/someone/tiny/revision/v2") for path in paths), "the revision was asked for"
    assert f"(4 files) of someone/tiny from {url}" in announced
    files = ["ae.safetensors", "config.json", "tokenizer.json", "weights.safetensors"]
    assert first == tagged == str(files), "and v2 is the same commit: nothing is downloaded anew"
    tries = [path for path in paths if path.startswith("GET") and path.endswith("weights.safetensors")]
    assert len(tries) == 2, "the broken one was tried again"
    assert not any(path.endswith("README.md") for path in paths)
    assert f"'someone/none' is not on {url}, or is private" in unknown
    assert loaded("someone/tiny@v2", "someone/tiny", HF_HUB_OFFLINE="1") == [str(files)] * 2


def test_a_mistyped_path_is_not_looked_for_on_the_hub(hub: FakeHub, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    with pytest.raises(ValueError, match=r"unknown model 'models/bagle'.*hub id"):
        model_folder("models/bagle")
    (tmp_path / "x.bin").write_bytes(b"\x80")
    with pytest.raises(ValueError, match="a pickle is never read"):
        model_folder("x.bin")
    assert not hub.calls


def test_an_index_on_the_hub_may_not_point_outside(hub: FakeHub) -> None:
    (hub.folder / "weights.safetensors").unlink()
    index = {"weight_map": {"a": "../../.ssh/key.safetensors"}}
    (hub.folder / "ema.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="not a file inside the folder"):
        snapshot(HubName("someone/tiny"))
    assert [name for name, _ in hub.calls] == ["info"]


def test_a_snapshot_of_links_is_read(hub: FakeHub, tmp_path: Path) -> None:
    """The hub's cache keeps the files elsewhere and links to them."""
    links = tmp_path / "snapshots" / "c0ffee"
    links.mkdir(parents=True)
    for path in hub.folder.iterdir():
        (links / path.name).symlink_to(path)
    load_model(links)


def test_folders_that_are_something_else(tmp_path: Path) -> None:
    for name, told in (("", "the model's name is empty"), ("  ", "is empty")):
        with pytest.raises(ValueError, match=told):
            model_folder(name)
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.json").write_text("{}")
    with pytest.raises(ValueError, match="is the folder of a training run: it has no model yet"):
        model_folder(run)
    (run / "adapter").mkdir()
    with pytest.raises(ValueError, match=f"its adapter is {run / 'adapter'}, for --lora"):
        model_folder(run)
    (run / "model").mkdir()
    with pytest.raises(ValueError, match=f"training run: its model is {run / 'model'}"):
        model_folder(run)
    (run / "adapter" / "adapter.json").write_text("{}")
    with pytest.raises(ValueError, match="is an adapter, no model: give it with --lora"):
        model_folder(run / "adapter")
