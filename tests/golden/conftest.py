"""Fixtures of the golden tests; every one of them is skipped where there is no golden folder."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from irg.model.weights.checkpoint import LoadedModel, load_model

from .fixture import Case


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.shared)


@pytest.fixture(scope="session")
def case(golden: Path) -> Callable[[str], Case]:
    """Opens a case by name; the test is skipped if the folder does not have it."""

    @cache
    def open_case(name: str) -> Case:
        if not (golden / f"{name}.json").is_file():
            pytest.skip(f"{golden} has no case {name}")
        return Case(golden, name)

    return open_case


@pytest.fixture(scope="session")
def case_names(golden: Path) -> list[str]:
    """All cases of the folder."""
    return sorted(path.stem for path in golden.glob("*.safetensors") if path.with_suffix(".json").is_file())


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where the network runs: --golden-device."""
    device = torch.device(request.config.getoption("--golden-device"))
    if device.type == "cuda":  # float32 means float32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return device


@pytest.fixture(scope="session")
def loaded(golden: Path, device: torch.device) -> LoadedModel:
    """The folder's network in float32, through the ordinary reader."""
    return load_model(golden, dtype=torch.float32, device=device)
