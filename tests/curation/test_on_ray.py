"""The same build on Ray, with two workers a stage: the same bytes."""

import hashlib
from pathlib import Path

import pytest

pytest.importorskip("ray")
pytest.importorskip("openai")

from faulty_server import FaultyServer
from teachers import recipe_dict, reply

from irg.curation.build import Layout, build
from irg.curation.export import export
from irg.curation.recipe import DataRecipe
from irg.recipes import build as read


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def test_two_workers_make_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000)
    try:
        with FaultyServer(reply) as server:
            plans = []
            for engine in ("files", "ray"):
                workers = {"workers": {"draft": 2, "reflect": 2}}
                data = recipe_dict(server.url, tmp_path / engine, 12, engine=engine, ray=workers)
                plans.append(read(DataRecipe, data))
                build(plans[-1], say=lambda _: None)
        one, two = (export(Layout.of(plan))[0] for plan in plans)
        assert hashes(one) == hashes(two) and len(hashes(one)) >= 4
        broken = read(DataRecipe, recipe_dict("http://127.0.0.1:9/v1", tmp_path / "none", 4, engine="ray"))
        with pytest.raises(ValueError, match=r"(reflect|target): http://127\.0\.0\.1:9/v1: .*build again to go on"):
            build(broken, say=lambda _: None)
    finally:
        ray.shutdown()
