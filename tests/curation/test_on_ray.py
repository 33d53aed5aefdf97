"""The same build on Ray, with two workers a stage: the same bytes."""

import hashlib
from pathlib import Path

import pytest

pytest.importorskip("openai")

from faulty_server import FaultyServer
from teachers import recipe_dict, reply

from irg.curation.build import build
from irg.curation.build_folder import BuildFolder
from irg.curation.endpoint_stages import EndpointStage
from irg.curation.export import export
from irg.curation.ray.workers import StageWorker
from irg.curation.recipe import DataRecipe
from irg.endpoints import Client
from irg.recipes import build as read


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


ONLY_TWO_TURNS = {"kind": "miniworld", "rows": 12, "repairs": 1.0, "sprites": "builtin"}


def recipe(url: str, out: Path, engine: str) -> DataRecipe:
    """Draft, reflect and target: each worker is a process that must be started."""
    prompts = {"sources": [ONLY_TWO_TURNS], "repeats": True}
    ray = {"workers": {"draft": 2, "reflect": 2}}
    return read(DataRecipe, recipe_dict(url, out, engine=engine, ray=ray, prompts=prompts, think=None, judges=[]))


def test_two_workers_make_the_same_bytes(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=6, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000)
    try:
        with FaultyServer(reply) as server:
            plans = [recipe(server.url, tmp_path / engine, engine) for engine in ("files", "ray")]
            for plan in plans:
                build(plan, log=lambda _: None)
    finally:
        ray.shutdown()
    one, two = (export(BuildFolder.of(plan))[0] for plan in plans)
    assert hashes(one) == hashes(two) and len(hashes(one)) >= 4


def client_of(worker: StageWorker) -> Client:
    assert isinstance(worker.stage, EndpointStage)
    return worker.stage.client


def test_a_worker_that_had_to_stop_says_so_and_passes_on(tmp_path: Path) -> None:
    plan = recipe("http://127.0.0.1:9/v1", tmp_path / "out", "files")
    with pytest.raises(ValueError, match="reflect: "):
        build(plan, log=lambda _: None)  # so that there are drafts
    worker = StageWorker(BuildFolder.of(plan), "reflect", {})
    first = worker({"block": [0], "problem": [""], "counts": [""]})
    assert "reflect: http://127.0.0.1:9/v1: " in first["problem"][0]
    retries = client_of(worker).totals.retries
    assert worker({"block": [1], "problem": [""], "counts": [""]})["problem"] == first["problem"]
    assert worker({"block": [1], "problem": ["earlier"], "counts": [""]})["problem"] == ["earlier"]
    assert client_of(worker).totals.retries == retries  # nothing more was tried
