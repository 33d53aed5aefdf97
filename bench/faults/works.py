"""What the campaigns interrupt: one function for each piece of work, on random models that take milliseconds."""

import hashlib
import json
import random
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from campaign import Child, Content, Work, digests, pixels, start

from irg.files import write_text

TIMES = {"seconds", "step_seconds", "tokens_per_second", "wait", "mfu", "memory", "eta", "flops"}
REPOSITORY = Path(__file__).resolve().parents[2]
SERVERS: list[Child] = []  # processes that works have started
SERVED: list[object] = []  # in such a process: kept, or they would end
sys.path.insert(0, str(REPOSITORY / "tests" / "helpers"))  # servers and rows that the tests have


def call(*words: object) -> int:
    """A command of ``irg``."""
    from irg.cli.main import main

    return main([str(word) for word in words])


def apart(base: Path, run: Callable[[], object]) -> None:
    """Prepare something in a process of its own, so that this one stays without threads."""
    child = start(lambda: None if run() is None else 1, base / "log.txt")
    assert child.wait() == 0, child.told


def model(base: Path, config: str = "tiny", *more: object) -> Path:
    """A model folder that thinks and draws noise."""
    folder = base / "model"
    words = ("model", "init", folder, "--config", config, "--random", "--dtype", "float32", "--layout", "irg", *more)
    apart(base, lambda: call(*words) or None)
    return folder


# ------------------------------------------------------------------------------------------------------------- training


def _write_rows(folder: Path) -> None:
    import numpy as np
    from trajectory_rows import write_shards

    from irg.curation.records import TrajectoryRecord, png

    def image(seed: int) -> bytes:
        colors = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), dtype=np.uint8)
        return png(colors.repeat(16, axis=0).repeat(16, axis=1))

    records = [TrajectoryRecord(f"p{i}", f"thought {i}", image(i)) for i in range(3)]
    records += [TrajectoryRecord(f"q{i}", f"idea {i}", image(10 + i), f"fix {i}", image(20 + i)) for i in range(3)]
    write_shards(records, folder, rows_per_shard=3)


def _training_content(folder: Path) -> Content:
    """The model's and the last checkpoint's files, and each step's last line of the log without times."""
    run = folder / "run"
    last = sorted((run / "checkpoints").glob("step-*"))[-1]
    found = digests(run, "model/*") | {f"checkpoint {name}": digest for name, digest in _tensors(last).items()}
    found |= {f"too many: {path}": "" for path in sorted(run.glob("checkpoints/*"))[:-2]}
    for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines():
        values = json.loads(line)
        kept = {key: value for key, value in values.items() if not any(time in key for time in TIMES)}
        found[f"log {values['step']}"] = json.dumps(kept, sort_keys=True)
    return found


def _tensors(folder: Path) -> Content:
    """Digests of the tensors of a folder's safetensors files, whose order in a file may differ."""
    found = {}
    for file in folder.glob("*.safetensors"):
        content = file.read_bytes()
        size = int.from_bytes(content[:8], "little")
        for name, entry in json.loads(content[8 : 8 + size]).items():
            if name != "__metadata__":
                first, end = (8 + size + offset for offset in entry["data_offsets"])
                found[name] = hashlib.sha256(content[first:end]).hexdigest()
    return found


def training(base: Path) -> Work:
    """``irg train`` with a checkpoint each step."""
    apart(base, lambda: _write_rows(base / "rows"))
    recipe = {
        "model": str(model(base)),
        "data": [str(base / "rows")],
        "out": str(base / "work" / "run"),
        "steps": 4,
        "mixture": {"initial_full": 0.5, "improving_full": 1.0},
        "tokens_per_pack": 1000,
        "log_every": 1,
        "save_every": 1,
        "keep": 2,
    }
    file = base / "recipe.yaml"
    file.write_text(json.dumps(recipe), encoding="utf-8")
    return Work("training", lambda _: call("train", file), _training_content)


def short_words(prompt: Any, trajectory: Any) -> float:
    """A reward that needs no server."""
    text = trajectory.turns[-1].thinking or ""
    return sum(ord(letter) % 7 for letter in text) / max(1, 7 * len(text))


def rl(base: Path) -> Work:
    """``irg train`` with a recipe of the kind rl."""
    prompts = base / "prompts.txt"
    prompts.write_text("a dog\ntwo cats on a couch\nthree\n", encoding="utf-8")
    recipe = {
        "kind": "rl",
        "model": str(model(base)),
        "out": str(base / "work" / "run"),
        "steps": 4,
        "prompts": {"kind": "file", "path": str(prompts)},
        "rewards": [{"name": "short-words"}],
        "rollout": {"prompts": 2, "samples": 3, "max_tokens": 6},
        "limits": {"malformed": 0.0},
        "save_every": 1,
        "keep": 2,
    }
    file = base / "recipe.yaml"
    file.write_text(json.dumps(recipe), encoding="utf-8")

    def run(_: Path) -> int:
        from irg import registry

        usual = registry.load
        registry.load = lambda group, name: short_words if name == "short-words" else usual(group, name)
        return call("train", file)

    return Work("rl", run, _training_content)


# --------------------------------------------------------------------------------------------------- data, benchmarks


def served(base: Path, server: Callable[[], str]) -> str:
    """The address of a server that ``server`` starts in a thread, in a process of its own."""
    place = base / "address.txt"

    def run() -> None:
        address = server()
        write_text(place, address)
        threading.Event().wait()

    child = start(run, base / "server.txt")
    SERVERS.append(child)
    while not place.exists():
        time.sleep(0.02)
        assert child.alive, child.told
    return place.read_text(encoding="utf-8")


def data(base: Path) -> Work:
    """``irg data build`` and ``irg data export``, all stages, against a server that fails now and then."""

    def server() -> str:
        from faulty_server import FaultyServer
        from teachers import reply

        plans: tuple[tuple[str, ...], ...] = ((), (), (), ("429",), ("500", "429"), ("truncated",), ("drop",))
        faulty = FaultyServer(reply, faults=lambda key: plans[int(key[:4], 16) % len(plans)], slow_s=0.005)
        faulty.__enter__()
        return faulty.url

    url = served(base, server)
    from teachers import recipe_file

    file = recipe_file(base / "recipe.yaml", url, base / "work" / "build", 4)

    def run(_: Path) -> int:
        return call("data", "build", file) or call("data", "export", file)

    def content(folder: Path) -> Content:
        found = digests(folder / "build")
        return {name: value for name, value in found.items() if name.startswith("export")}

    return Work("data", run, content)


def bench(base: Path) -> Work:
    """``irg bench run``: images of three prompts, two each."""
    prompts = base / "evaluation_metadata.jsonl"
    lines = [
        {"tag": "single_object", "include": [{"class": one, "count": 1}], "prompt": f"a photo of a {one}"}
        for one in ("cat", "bus", "dog")
    ]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    folder = model(base)

    def run(work: Path) -> int:
        words = ("bench", "run", "geneval", "--model", folder, "--prompts", prompts, "-n", 2, "--rounds", 1)
        small = ("--size", "32x32", "--num-timesteps", 3, "--improve-num-timesteps", 3, "--max-think-tokens", 4)
        return call(*words, *small, "--batch-size", 2, "--resume", "--out", work / "run")

    def content(work: Path) -> Content:
        run = work / "run"
        found = digests(run, "images/**/*.jsonl") | pixels(run, "images/**/*.png") | pixels(run, "turns/**/*.png")
        for path in sorted(run.glob("trajectories/**/*.json")):
            found[str(path.relative_to(run))] = json.dumps(_without_times(json.loads(path.read_text("utf-8"))))
        return found

    return Work("bench", run, content)


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(one) for key, one in value.items() if "seconds" not in key}
    return [_without_times(one) for one in value] if isinstance(value, list) else value


# -------------------------------------------------------------------------------------------------- model folders


def download(base: Path) -> Work:
    """A hub model, and pinned files of prompt sets."""
    source = model(base)
    texts = base / "texts"
    texts.mkdir()
    noise = random.Random(0)
    for number in range(6):
        (texts / f"{number}.jsonl").write_bytes(noise.randbytes(200_000))

    def server() -> str:
        import http.server
        from functools import partial

        from hub_server import hub_server

        hub = hub_server(source, "")
        address, _ = hub.__enter__()
        handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(texts))
        files = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=files.serve_forever, daemon=True).start()
        SERVED.extend((hub, files))
        return f"{address} http://127.0.0.1:{files.server_port}/"

    addresses = served(base, server)
    hub, plain = addresses.split()
    pins = {name: (digest, (texts / name).stat().st_size) for name, digest in digests(texts).items()}

    def run(work: Path) -> int:
        from huggingface_hub import constants

        from irg.downloads import Origin
        from irg.promptsets.fetch import fetch
        from irg.promptsets.sources import PinnedFile, PromptSource

        constants.ENDPOINT = hub
        constants.HUGGINGFACE_CO_URL_TEMPLATE = hub + "/{repo_id}/resolve/{revision}/{filename}"
        constants.HF_HUB_CACHE = str(work / "hub")
        origin = Origin("here", "0" * 40, "none", "free", plain)
        files = tuple(PinnedFile(name, *pin, ((origin, name),)) for name, pin in pins.items())
        try:
            fetch(PromptSource("here", "these", {"all": files}), "all", work / "cache", False, print)
        except (ValueError, OSError) as error:
            print(error)
            return 2
        return call("model", "convert", "someone/tiny", work / "out", "--overwrite")

    def content(work: Path) -> Content:
        return digests(work, "cache/**/*.jsonl") | digests(work, "hub/*/snapshots/**/*") | digests(work, "out/**/*")

    return Work("download", run, content)


def convert(base: Path) -> Work:
    """``irg model convert`` to another layout, in shards; two at once may both get there."""
    source = model(base, "mini", "--narrow", 2)

    def run(work: Path) -> int:
        words = ("--layout", "bagel", "--dtype", "float16", "--shard-size", "1MB", "--overwrite")
        return call("model", "convert", source, work / "out", *words)

    return Work("convert", run, lambda work: digests(work, "out/**/*"))


WORKS: dict[str, Callable[[Path], Work]] = {
    "training": training,
    "rl": rl,
    "data": data,
    "bench": bench,
    "download": download,
    "convert": convert,
}
