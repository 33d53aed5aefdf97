"""Run the pack in a real ComfyUI, over its HTTP API, on the CPU with irg-mini.

    COMFYUI_PYTHON integrations/comfyui/tests/run_in_comfyui.py COMFYUI_FOLDER COMFYUI_PYTHON [--serve-python PYTHON]

COMFYUI_PYTHON is the Python of ComfyUI's environment, in which irg is installed; PYTHON one with ``irg[serve]``, if
that is another one. The pack is laid into a folder of
custom nodes of its own (ComfyUI's ``--base-directory``), so ComfyUI's folder stays as it is. Checked: the pack loads
without a warning; each example workflow gives its images; progress and previews arrive on the websocket; two runs in a
row and two workflows reuse the model; the steps give what the whole loop gives; a latent decodes to its image; a bad
value is told on its node; a run can be stopped. Exit code 0: all of it holds.
"""

import argparse
import asyncio
import contextlib
import io
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PACK = Path(__file__).resolve().parents[1]
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
PREVIEW_WITH_METADATA = 4
START_SECONDS, RUN_SECONDS = 600, 600
Workflow = dict[str, Any]


def to_api(workflow: Workflow, nodes: Mapping[str, Any]) -> dict[str, Any]:
    """A workflow in the page's format as ``POST /prompt`` takes it; ``nodes`` is the answer of ``/object_info``."""
    links = {link[0]: (str(link[1]), link[2]) for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        values: dict[str, Any] = {}
        given = iter(node["widgets_values"])
        groups = nodes[node["type"]]["input"]
        for name, spec in [*groups.get("required", {}).items(), *groups.get("optional", {}).items()]:
            options = spec[1] if len(spec) > 1 else {}
            if isinstance(spec[0], list) or spec[0] in WIDGETS:
                values[name] = next(given)
                if options.get("control_after_generate"):
                    next(given)
        assert next(given, None) is None, f"{node['type']} has more values than inputs"
        values |= {one["name"]: list(links[one["link"]]) for one in node["inputs"] if one["link"] is not None}
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": values}
    return prompt


@dataclass
class Run:
    """What a run told on the websocket and left in the history."""

    cached: list[str] = field(default_factory=list)
    executed: list[str] = field(default_factory=list)
    progress: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    previews: list[tuple[str, Any]] = field(default_factory=list)  # (node, image)
    error: dict[str, Any] | None = None
    interrupted: bool = False
    outputs: dict[str, Any] = field(default_factory=dict)


class Client:
    """A client of one ComfyUI."""

    def __init__(self, session: Any, url: str) -> None:
        self.session, self.url, self.id = session, url, uuid.uuid4().hex

    async def get(self, path: str) -> Any:
        async with self.session.get(self.url + path) as answer:
            answer.raise_for_status()
            return await answer.json()

    async def refused(self, prompt: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a prompt that must not be taken."""
        async with self.session.post(f"{self.url}/prompt", json={"prompt": prompt}) as answer:
            assert answer.status == 400, f"a bad prompt was taken: {answer.status}"
            return await answer.json()

    async def run(self, prompt: Mapping[str, Any], stop_at_progress: bool = False) -> Run:
        """Run a prompt to its end, listening on the websocket."""
        run = Run()
        async with self.session.ws_connect(f"{self.url}/ws?clientId={self.id}", max_msg_size=0) as socket_:
            await socket_.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
            body = {"prompt": prompt, "client_id": self.id}
            async with self.session.post(f"{self.url}/prompt", json=body) as answer:
                queued = await answer.json()
                assert answer.status == 200, json.dumps(queued, indent=1)
            async with asyncio.timeout(RUN_SECONDS):
                async for message in socket_:
                    if isinstance(message.data, bytes):
                        run.previews.append(preview(message.data))
                        continue
                    told = json.loads(message.data)
                    kind, data = told["type"], told["data"]
                    if kind == "execution_cached":
                        run.cached = data["nodes"]
                    elif kind == "progress_state":
                        for node, state in data["nodes"].items():
                            told_before = run.progress.setdefault(node, [])
                            if told_before[-1:] != [(state["value"], state["max"])]:
                                told_before.append((state["value"], state["max"]))
                        if stop_at_progress and any(0 < one["value"] < one["max"] for one in data["nodes"].values()):
                            async with self.session.post(f"{self.url}/interrupt") as answer:
                                answer.raise_for_status()
                    elif kind == "executing" and data["node"] is None:
                        break
                    elif kind == "executing":
                        run.executed.append(data["node"])
                    elif kind == "execution_interrupted":
                        run.interrupted = True
                        break
                    elif kind == "execution_error":
                        run.error = data
                        break
                    elif kind == "execution_success":
                        break
        run.outputs = await self.outputs(queued["prompt_id"])
        return run

    async def outputs(self, prompt_id: str) -> dict[str, Any]:
        """What a run's nodes left; it is in the history soon after the last message."""
        async with asyncio.timeout(30):
            while prompt_id not in (history := await self.get(f"/history/{prompt_id}")):
                await asyncio.sleep(0.1)
        outputs: dict[str, Any] = history[prompt_id]["outputs"]
        return outputs

    async def images(self, run: Run, node: str) -> list[Any]:
        """The images that a node left."""
        from PIL import Image

        found = []
        for image in run.outputs[node]["images"]:
            query = {name: image[name] for name in ("filename", "subfolder", "type")}
            async with self.session.get(f"{self.url}/view", params=query) as answer:
                answer.raise_for_status()
                found.append(Image.open(io.BytesIO(await answer.read())).convert("RGB"))
        return found


def preview(message: bytes) -> tuple[str, Any]:
    """The node and the image of a binary message: its kind, the length of its JSON, the JSON, the file."""
    from PIL import Image

    kind, length = struct.unpack(">II", message[:8])
    assert kind == PREVIEW_WITH_METADATA, kind
    data = json.loads(message[8 : 8 + length])
    return data["node_id"], Image.open(io.BytesIO(message[8 + length :])).convert("RGB")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@contextlib.contextmanager
def process(command: Sequence[str], log: Path, cwd: Path | None = None, **environment: str) -> Iterator[None]:
    """A process that is ended at the end; what it prints goes to ``log``."""
    with log.open("wb") as out:
        env = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")} | environment
        running = subprocess.Popen(command, cwd=cwd, stdout=out, stderr=subprocess.STDOUT, env=env)
        try:
            yield
        finally:
            running.terminate()
            try:
                running.wait(30)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()


async def wait_for(session: Any, url: str, log: Path) -> None:
    """Until an address answers with 200."""
    import aiohttp

    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        with contextlib.suppress(aiohttp.ClientError):
            async with session.get(url) as answer:
                if answer.status == 200:
                    return
        await asyncio.sleep(0.5)
    raise SystemExit(f"{url} is not there after {START_SECONDS} s:\n{log.read_text()[-3000:]}")


@contextlib.asynccontextmanager
async def comfyui(folder: Path, python: str, base: Path, server: str) -> AsyncIterator[tuple[Client, Path]]:
    """A running ComfyUI with the pack, and its log."""
    import aiohttp

    for name in ("custom_nodes", "models", "input", "output", "temp", "user"):
        (base / name).mkdir(parents=True)
    (base / "custom_nodes" / "comfyui-irg").symlink_to(PACK, target_is_directory=True)
    port, log = free_port(), base / "comfyui.log"
    command = [python, "main.py", "--cpu", "--port", str(port), "--base-directory", str(base)]
    command += ["--preview-method", "auto", "--database-url", "sqlite:///:memory:"]
    with process(command, log, folder, IRG_SERVER_URL=server):
        async with aiohttp.ClientSession() as session:
            await wait_for(session, f"http://127.0.0.1:{port}/object_info", log)
            yield Client(session, f"http://127.0.0.1:{port}"), log


@contextlib.asynccontextmanager
async def irg_server(python: str, base: Path) -> AsyncIterator[str]:
    """A running ``irg serve``; its address."""
    import aiohttp

    port, log = free_port(), base / "irg-serve.log"
    url = f"http://127.0.0.1:{port}"
    command = [python, "-m", "irg", "serve", "--model", "mini", "--port", str(port)]
    with process(command, log):
        async with aiohttp.ClientSession() as session:
            await wait_for(session, f"{url}/ready", log)
            yield url


# ------------------------------------------------------------------------------------------------------- the checks


def by_kind(prompt: Mapping[str, Any], kind: str) -> str:
    """The id of the one node of a kind."""
    (found,) = [node for node, one in prompt.items() if one["class_type"] == kind]
    return found


def difference(one: Any, other: Any) -> float:
    """Mean difference of two images, in levels of 0 to 255."""
    import numpy as np

    return float(np.abs(np.asarray(one, dtype=float) - np.asarray(other, dtype=float)).mean())


def check_loaded(log: str) -> None:
    loading = log[log.index("Import times for custom nodes") :] if "Import times" in log else log
    assert "comfyui-irg" in loading, log
    bad = [line for line in log.splitlines() if "comfyui-irg" in line and ("FAILED" in line or "Error" in line)]
    assert not bad and "Cannot import" not in log and "Traceback" not in log, log


def check_progress(run: Run, node: str) -> None:
    """Progress of a node rises to its end, in more than one step."""
    told = [one for one in run.progress.get(node, []) if one != (0, 1)]
    assert len(told) > 1 and told == sorted(told) and told[-1][0] == told[-1][1], f"progress of {node}: {told}"


async def check_examples(client: Client, nodes: Mapping[str, Any], out: Path) -> dict[str, list[Any]]:
    """Every example gives two images; returns them by the workflow's name."""
    found = {}
    for path in sorted((PACK / "example_workflows").glob("*.json")):
        assert path.with_suffix(".jpg").is_file(), f"{path.name} has no thumbnail"
        prompt = to_api(json.loads(path.read_text(encoding="utf-8")), nodes)
        begun = time.monotonic()
        run = await client.run(prompt)
        assert run.error is None, run.error
        images = [
            image
            for kind in ("PreviewImage", "SaveImage")
            for node, one in prompt.items()
            if one["class_type"] == kind and node in run.outputs
            for image in await client.images(run, node)
        ]
        # the first image, [the second from its latent,] the second
        first, second = images[0], images[-1]
        assert first.size == second.size == (128, 128), path.name
        assert difference(first, second) > 1, f"{path.name}: the two images are the same"
        if len(images) == 3:
            assert difference(images[1], second) < 1, f"{path.name}: the latent is not the image's"
        texts = [run.outputs[node]["text"][0] for node, one in prompt.items() if one["class_type"] == "PreviewAny"]
        assert texts and all(texts), f"{path.name}: {texts}"
        shown = [difference(preview.resize(first.size), first) for _, preview in run.previews]
        assert shown and min(shown) < 5, f"{path.name}: no preview is the first image"
        assert shown.index(min(shown)) > 0, f"{path.name}: nothing is shown before the first image"
        for kind in {"IRGGenerate", "IRGDraw", "IRGRedraw"} & {one["class_type"] for one in prompt.values()}:
            check_progress(run, by_kind(prompt, kind))
        for number, image in enumerate((first, second)):
            image.save(out / f"{path.stem}-{number}.png")
        print(f"{path.stem}: {time.monotonic() - begun:.1f} s, {len(run.previews)} previews, texts {texts}")
        found[path.stem] = [first, second]
    assert difference(found["irg_loop"][1], found["irg_steps"][1]) < 1, "the steps are not the loop"
    assert difference(found["irg_loop"][1], found["irg_server"][1]) < 1, "the server is not the loop"
    assert difference(found["irg_loop"][1], found["irg_own_reflection"][1]) > 1, "an own reflection changes nothing"
    return found


async def check_reuse(client: Client, loop: dict[str, Any], steps: dict[str, Any], log: Path) -> None:
    """Another seed, and another workflow, take the model that is there."""
    before = log.read_text().count("IRG: loaded")
    generate, load = by_kind(loop, "IRGGenerate"), by_kind(loop, "IRGLoadModel")
    for seed in (101, 102):
        loop[generate]["inputs"]["seed"] = seed
        run = await client.run(loop)
        assert load in run.cached and generate in run.executed and run.error is None
    run = await client.run(steps)
    assert by_kind(steps, "IRGLoadModel") in run.cached
    # another drawing from the same thinking: the thinking is not written again
    draw = by_kind(steps, "IRGDraw")
    steps[draw]["inputs"] |= {"seed": 5, "reseed": True}
    run = await client.run(steps)
    assert by_kind(steps, "IRGThink") in run.cached and draw in run.executed
    assert log.read_text().count("IRG: loaded") == before, "the model was loaded again"


async def check_mistakes(client: Client, loop: dict[str, Any], steps: dict[str, Any]) -> None:
    """Bad values are told on their nodes: before a run where they can be, else by it."""
    generate, load = by_kind(loop, "IRGGenerate"), by_kind(loop, "IRGLoadModel")
    cases = [
        (generate, "size", "12 by 12", "size must be WIDTHxHEIGHT"),
        (generate, "prompt", " ", "the prompt is empty"),
        (generate, "critic", "nobody", "nobody"),
        (generate, "rounds", 0, "smaller than min"),
        (generate, "mode", "dream", "mode must be one of"),
        (load, "model", "no such model", "unknown model"),
        (load, "memory", "int3", "memory must be one of"),
    ]
    for node, name, value, message in cases:
        prompt = json.loads(json.dumps(loop))
        prompt[node]["inputs"][name] = value
        answer = await client.refused(prompt)
        errors = answer["node_errors"][node]["errors"]
        assert any(message in f"{one['message']} {one['details']}" for one in errors), (name, errors)
    wrong_size = json.loads(json.dumps(loop))
    wrong_size[generate]["inputs"]["size"] = "1000"  # the model is needed to know that
    run = await client.run(wrong_size)
    assert run.error is not None and run.error["node_id"] == generate
    assert "must be a multiple of 16" in run.error["exception_message"], run.error
    not_here = json.loads(json.dumps(loop))
    not_here[load]["inputs"]["model"] = "nobody/there"
    run = await client.run(not_here)
    assert run.error is not None and run.error["node_id"] == load
    assert "turn on download" in run.error["exception_message"], run.error["exception_message"]
    no_reflection = json.loads(json.dumps(steps))
    redraw, think = by_kind(steps, "IRGRedraw"), by_kind(steps, "IRGThink")
    no_reflection[redraw]["inputs"]["context"] = [think, 0]
    run = await client.run(no_reflection)
    assert run.error is not None and run.error["node_id"] == redraw
    assert "take IRG Look and Reflect first" in run.error["exception_message"]


async def check_stop(client: Client, loop: dict[str, Any]) -> None:
    """The stop button ends a run; the next one works."""
    generate = by_kind(loop, "IRGGenerate")
    loop[generate]["inputs"] |= {"seed": 200, "steps": 200}
    run = await client.run(loop, stop_at_progress=True)
    assert run.interrupted and run.error is None
    loop[generate]["inputs"] |= {"steps": 2, "mode": "direct", "critic": "self"}
    run = await client.run(loop)
    assert run.error is None


async def check_all(folder: Path, python: str, serve_python: str, base: Path, out: Path) -> None:
    async with (
        irg_server(serve_python, base) as server,
        comfyui(folder, python, base / "comfyui", server) as (client, log),
    ):
        check_loaded(log.read_text())
        nodes = await client.get("/object_info")
        mine = [name for name in nodes if name.startswith("IRG")]
        assert len(mine) == 8, mine
        print(f"loaded: {', '.join(mine)}")
        await check_examples(client, nodes, out)

        def example(name: str) -> dict[str, Any]:
            text = (PACK / "example_workflows" / f"{name}.json").read_text(encoding="utf-8")
            return to_api(json.loads(text), nodes)

        await check_reuse(client, example("irg_loop"), example("irg_steps"), log)
        print("two runs in a row and another workflow: the model was reused")
        await check_mistakes(client, example("irg_loop"), example("irg_steps"))
        print("mistakes are told on their nodes")
        await check_stop(client, example("irg_loop"))
        print("a run was stopped, and the next one worked")


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the pack in a real ComfyUI.")
    parser.add_argument("folder", type=Path, help="ComfyUI's folder, with main.py")
    parser.add_argument("python", help="the Python of its environment, with irg installed")
    parser.add_argument("--serve-python", metavar="PYTHON", help="a Python with irg[serve]; default: the same")
    parser.add_argument("--out", type=Path, help="where the examples' images are written")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        out = given.out or Path(temporary) / "out"
        out.mkdir(parents=True, exist_ok=True)
        asyncio.run(check_all(given.folder, given.python, given.serve_python or given.python, Path(temporary), out))
    print("all checks hold")
    return 0


if __name__ == "__main__":
    sys.exit(main())
