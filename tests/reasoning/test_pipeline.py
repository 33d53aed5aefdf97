"""The pipeline on a tiny model: callers that share it, requests that fail, checks before anything runs."""

import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from irg.engine.ops import Program
from irg.model.weights.checkpoint import LoadedModel
from irg.model.weights.initialize import write_folder
from irg.reasoning import pipeline
from irg.reasoning.events import Event, Failed, Finished, GenerationError
from irg.reasoning.pipeline import IRGPipeline
from irg.reasoning.protocols.base import Job
from irg.reasoning.protocols.irg import IRG
from irg.reasoning.settings import Settings, with_options

SMALL = {"height": 32, "width": 32, "num_timesteps": 3, "improve_num_timesteps": 3, "max_think_tokens": 4}
SMALL_WIDE = {"size": "16:9", "mode": "direct", "num_timesteps": 2}


@pytest.fixture(scope="module")
def pipe(tiny_loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> IRGPipeline:
    folder = tmp_path_factory.mktemp("tiny")
    write_folder(folder, tiny_loaded.config)
    return IRGPipeline.from_pretrained(folder, "cpu")


@pytest.fixture
def settings(pipe: IRGPipeline) -> Settings:
    return with_options(pipe.defaults, SMALL)


Results = dict[int, list[tuple[str | None, Any]]]  # request -> (text, pixels) of each turn


def result(event: Finished) -> list[tuple[str | None, Any]]:
    return [(turn.thinking, np.asarray(turn.image, dtype=float)) for turn in event.trajectory.turns]


def finished(events: Iterator[Event]) -> Results:
    return {event.request: result(event) for event in events if isinstance(event, Finished)}


def assert_same(found: Results, wanted: Results) -> None:
    """The same texts and images; a batch of another size may round a pixel differently."""
    assert found.keys() == wanted.keys()
    for request, turns in wanted.items():
        assert [text for text, _ in found[request]] == [text for text, _ in turns]
        for (_, one), (_, other) in zip(found[request], turns, strict=True):
            assert np.abs(one - other).mean() < 0.5


def test_two_interleaved_streams_do_not_mix(pipe: IRGPipeline, settings: Settings) -> None:
    calls: tuple[tuple[list[str], list[int]], ...] = ((["a cat", "a dog"], [1, 2]), (["a bus"], [3]))
    alone = [finished(pipe.stream(prompts, seeds, settings)) for prompts, seeds in calls]
    streams = [pipe.stream(prompts, seeds, settings) for prompts, seeds in calls]
    together: list[Results] = [{}, {}]
    open_ = [0, 1]
    while open_:
        for i in list(open_):
            event = next(streams[i], None)
            if event is None:
                open_.remove(i)
            elif isinstance(event, Finished):
                assert event.trajectory.prompt == calls[i][0][event.request]
                together[i][event.request] = result(event)
    for found, wanted in zip(together, alone, strict=True):
        assert_same(found, wanted)


def test_closing_one_stream_leaves_the_other_alone(pipe: IRGPipeline, settings: Settings) -> None:
    alone = finished(pipe.stream(["a cat"], [1], settings))
    one, other = pipe.stream(["a cat"], [1], settings), pipe.stream(["a dog", "a bus"], [2, 3], settings)
    next(one), next(other)
    other.close()
    assert_same(finished(one), alone)
    assert next(other, None) is None


def test_two_threads_share_a_pipeline(pipe: IRGPipeline, settings: Settings) -> None:
    calls = [(["a cat", "a dog"], [1, 2]), (["a bus", "a cat"], [3, 4])]
    alone = [finished(pipe.stream(prompts, seeds, settings)) for prompts, seeds in calls]
    results: dict[int, Results] = {}
    start = threading.Barrier(2)

    def run(i: int, prompts: Sequence[str], seeds: Sequence[int]) -> None:
        start.wait()
        results[i] = finished(pipe.stream(prompts, seeds, settings))

    threads = [threading.Thread(target=run, args=(i, *call)) for i, call in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, wanted in enumerate(alone):
        assert_same(results[i], wanted)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request about a dog fails while it thinks."""
    usual = IRG.program

    def program(self: IRG, job: Job) -> Program:
        steps = yield from usual(self, job)
        if "dog" in job.prompt:
            raise MemoryError("out of memory")
        return steps

    monkeypatch.setattr(IRG, "program", program)


@pytest.mark.usefixtures("failing")
def test_a_failing_request_is_an_event_and_stops_no_other(pipe: IRGPipeline, settings: Settings) -> None:
    events = list(pipe.stream(["a cat", "a dog", "a bus"], [1, 2, 3], settings))
    (failed,) = [event for event in events if isinstance(event, Failed)]
    assert failed.request == 1 and str(failed.error) == "request 1 ('a dog') failed: out of memory"
    assert isinstance(failed.error.__cause__, MemoryError)
    assert {event.request for event in events if isinstance(event, Finished)} == {0, 2}


@pytest.mark.usefixtures("failing")
def test_a_failing_request_raises_for_its_caller_only(pipe: IRGPipeline, settings: Settings) -> None:
    other = pipe.stream(["a bus"], [3], settings)
    next(other)
    with pytest.raises(GenerationError, match=r"request 1 \('a dog'\) failed: out of memory"):
        pipe(["a cat", "a dog"], seed=[1, 2], settings=settings)
    assert set(finished(other)) == {0}
    assert pipe("a cat", seed=1, settings=settings).image.size == (32, 32)


@pytest.mark.parametrize("size", [0, -1, 2.0, True])
def test_a_batch_holds_at_least_one_request(pipe: IRGPipeline, size: Any) -> None:
    for call in (
        lambda: pipe("a cat", batch_size=size, **SMALL),
        lambda: pipe.stream("a cat", batch_size=size),
        lambda: pipe.redraw([], [], batch_size=size),
    ):
        with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1"):
            call()


def test_redraw_takes_a_reflection_of_ones_own(pipe: IRGPipeline, settings: Settings) -> None:
    first = pipe("a cat", seed=1, settings=settings).trajectory
    own = str(first.reflection)
    (same,) = pipe.redraw([first], [own], settings)
    (other,) = pipe.redraw([first], [own + " more of it"], settings)
    assert np.asarray(same).tolist() != np.asarray(other).tolist()
    with pytest.warns(DeprecationWarning, match="retell is now called IRGPipeline.redraw"):
        (again,) = pipe.retell([first], [own], settings)
    assert np.array_equal(again, same)
    with pytest.raises(ValueError, match="1 trajectories need as many reflections, got 2"):
        pipe.redraw([first], [own, own], settings)
    with pytest.raises(ValueError, match="has no thinking and image in its first turn"):
        pipe.redraw([pipe("a cat", settings=settings, mode="direct").trajectory], [own], settings)


def test_the_last_image_of_several_prompts(pipe: IRGPipeline, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    outputs = pipe(
        ["a cat", "a dog"],
        seed=5,
        callback_on_step_end=lambda _, step, t, info: steps.append((step, info["turn"])),
        **SMALL,
    )
    assert [output.trajectory.prompt for output in outputs] == ["a cat", "a dog"]
    assert set(steps) == {(1, 0), (2, 0), (1, 1), (2, 1)}
    assert (outputs[0].save(tmp_path / "o") / "improved.png").is_file()


def test_options_are_checked_before_the_weights_are_read(
    tiny_loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path, tiny_loaded.config)
    monkeypatch.setattr(pipeline, "load_with_plan", lambda *_: pytest.fail("the weights are being read"))
    for options, told in (
        ({"height": 100, "width": 64}, "height must be a multiple of 16 from 16 to 128 for this model, got 100"),
        ({"size": "2048"}, "height must be a multiple of 16 from 16 to 128"),
        ({"size": "1:20"}, "the shorter side would have less than the 16 pixels it needs"),
        ({"mode": "draw"}, "mode must be one of"),
    ):
        with pytest.raises(ValueError, match=told):
            IRGPipeline.from_pretrained(tmp_path, "cpu", options=options)


def test_options_become_the_pipelines_own(tiny_loaded: LoadedModel, tmp_path: Path) -> None:
    write_folder(tmp_path, tiny_loaded.config)
    told: list[str] = []
    pipe = IRGPipeline.from_pretrained(tmp_path, "cpu", say=told.append, options=SMALL_WIDE)
    assert "Size: 16:9 is 128x80 for this model" in told
    assert pipe("a cat", seed=1).image.size == (128, 80)
    assert pipe("a cat", seed=1, size="square").image.size == (128, 128)


def test_it_starts_without_the_compiler() -> None:
    """torch._dynamo and distributed tensors take seconds to import; neither is needed to draw in one process."""
    code = (
        "import sys; from irg import IRGPipeline; pipe = IRGPipeline.from_pretrained('mini', 'cpu'); "
        "pipe('a cup', size=64, num_timesteps=2, improve_num_timesteps=2, max_think_tokens=4); "
        "sys.exit(' '.join({'torch._dynamo', 'torch.distributed.tensor'} & sys.modules.keys()) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
