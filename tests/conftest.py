"""Options and fixtures that several test folders share."""

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # the command line's tests want to start quickly
    from irg.model.weights.checkpoint import LoadedModel
    from irg.model.weights.tokenizer import TextTokenizer

if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes, each with a core
    os.environ.setdefault("OMP_NUM_THREADS", "1")

_BESIDE = Path(__file__).resolve().parents[2] / "shared"  # where a checkout may have the shared data beside it


def pytest_addoption(parser: pytest.Parser) -> None:
    where = "(default: {} in $IRG_SHARED or in ../shared, if it is there)"
    parser.addoption("--golden", metavar="DIR", help=f"folder of golden fixtures {where.format('golden')}")
    parser.addoption("--golden-device", metavar="DEVICE", default="cpu", help="where golden tests run (default: cpu)")
    parser.addoption("--official", metavar="DIR", help=f"official benchmark cases {where.format('benchmarks')}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what this machine can't run, and say why."""
    if not os.environ.get("IRG_TEST_NETWORK"):
        for item in items:
            if item.get_closest_marker("network"):
                item.add_marker(pytest.mark.skip(reason="needs the network; set IRG_TEST_NETWORK=1"))
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def golden(request: pytest.FixtureRequest) -> Path:
    """The folder of golden fixtures; the test is skipped if there is none."""
    return _shared_folder(request, "--golden", "golden", "config.json")


@pytest.fixture(scope="session")
def official(request: pytest.FixtureRequest) -> Path:
    """The folder of official benchmark cases (geneval/, wise/, ...); the test is skipped if there is none."""
    return _shared_folder(request, "--official", "benchmarks", "")


def _shared_folder(request: pytest.FixtureRequest, option: str, name: str, proof: str) -> Path:
    asked = request.config.getoption(option)
    folder = Path(asked) if asked else Path(os.environ.get("IRG_SHARED") or _BESIDE) / name
    if not folder.is_dir() or not (folder / proof).exists():
        problem = f"no {proof} in that folder" if proof and folder.is_dir() else "no such folder"
        if asked:
            pytest.fail(f"{option} {asked}: {problem}", pytrace=False)
        pytest.skip(f"needs shared data that is not here (give it with {option} DIR)")
    return folder


@pytest.fixture
def own_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """This checkout's plug-ins, whatever was installed before they were added."""
    import tomllib
    from importlib.metadata import EntryPoint

    from irg import registry

    project = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    groups = project["project"]["entry-points"]

    def found(group: str) -> dict[str, EntryPoint]:
        points = sorted(groups.get(group, {}).items())
        return {name: EntryPoint(name=name, value=value, group=group) for name, value in points}

    monkeypatch.setattr(registry, "_found", found)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> "TextTokenizer":
    """One token per byte, then the four special ones: :func:`irg.model.network.config.tiny` with 260 words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    from irg.model.weights.tokenizer import SPECIAL_NAMES, TextTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_NAMES))
    return TextTokenizer(tokenizer)


@pytest.fixture(scope="session")
def tiny_loaded() -> "LoadedModel":
    """A whole model with random weights that runs in milliseconds. Tests must leave its weights as they are."""
    import torch

    from irg.model.network.autoencoder import CompactConfig, build_autoencoder
    from irg.model.network.config import tiny
    from irg.model.weights.checkpoint import LoadedModel
    from irg.model.weights.initialize import random_model

    thin = CompactConfig(12, (8, 16), (1, 1), (4, 8, 16), (1, 1, 1))
    config = replace(tiny(vocab_size=260), autoencoder=thin)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        autoencoder = build_autoencoder(config.autoencoder)
    return LoadedModel(config, random_model(config, seed=0), autoencoder.eval())
