"""Sessions: callers that share an engine get their own events, in any number of threads."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from irg.engine.cache import Context
from irg.engine.engine import Engine
from irg.engine.events import DenoiseStep, EngineEvent, ImageDone, RequestDone, RequestFailed, TextDelta, TextDone
from irg.engine.ops import Draw, Program, Say, Write
from irg.engine.runner import Runner
from irg.engine.settings import DrawSettings
from irg.model.weights.checkpoint import LoadedModel
from irg.model.weights.tokenizer import TextTokenizer
from irg.reasoning.events import Finished
from irg.reasoning.pipeline import IRGPipeline
from irg.reasoning.settings import with_options

SHORT = DrawSettings(num_timesteps=4, cfg_text_scale=3.0)
WAIT = 30  # seconds until a test that hangs fails


class PausedRunner(Runner):
    """Stops in its next decoding forward, if asked to, until it is let go on."""

    def __init__(self, loaded: LoadedModel) -> None:
        super().__init__(loaded.model, loaded.autoencoder)
        self.inside, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()

    def feed(self, contexts: Sequence[Context], texts_BN: Sequence[Sequence[int]]) -> Tensor:
        self.inside.set()
        assert self.go_on.wait(WAIT)
        return super().feed(contexts, texts_BN)


@pytest.fixture
def runner(tiny_loaded: LoadedModel) -> PausedRunner:
    return PausedRunner(tiny_loaded)


@pytest.fixture
def engine(runner: PausedRunner, tiny_tokenizer: TextTokenizer) -> Engine:
    return Engine(runner, tiny_tokenizer)


def program(prompt: str, tokens: int = 6, closed: list[str] | None = None) -> Program:
    """Thinking, an image, a second text."""
    try:
        said = yield Say(prompt)
        thinking = yield Write(tokens, temperature=1.0)
        drawn = yield Draw(32, 32, SHORT, said.handles)
        after = yield Write(3, temperature=0.0)
        return thinking.ids, drawn.latents, after.ids
    except GeneratorExit:
        if closed is not None:
            closed.append(prompt)
        raise


PROMPTS = ("red", "a green cat", "", "blue", "two dogs")


@pytest.fixture(scope="module")
def alone(tiny_loaded: LoadedModel, tiny_tokenizer: TextTokenizer) -> dict[str, Any]:
    engine = Engine(Runner(tiny_loaded.model, tiny_loaded.autoencoder), tiny_tokenizer)
    return {prompt: engine.run([(program(prompt), seed)])[0] for seed, prompt in enumerate(PROMPTS)}


def same(got: Any, wanted: Any) -> None:
    assert (got[0], got[2]) == (wanted[0], wanted[2])
    assert torch.allclose(got[1], wanted[1], atol=1e-5)


def free(engine: Engine) -> bool:
    cache = engine.runner.cache
    return cache.rows_in_use == 0 and not engine.scheduler.running and not engine._owners


def in_thread(work: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_each_session_gets_its_own_events(engine: Engine, alone: dict[str, Any]) -> None:
    """Two iterators taken in turns: every event of every request arrives where it belongs, in order."""
    first, second = engine.session(), engine.session()
    for seed, prompt in enumerate(PROMPTS[:2]):
        (first, second)[seed].add(program(prompt), seed, index=10 + seed)
    got: list[list[EngineEvent]] = [[], []]
    while first.unfinished or second.unfinished:
        for session, events in zip((first, second), got, strict=True):
            if (event := next(session, None)) is not None:
                events.append(event)
    for seed, (session, events) in enumerate(zip((first, second), got, strict=True)):
        events += session
        assert {event.request for event in events} == {10 + seed}
        assert sum(isinstance(event, TextDone) for event in events) == 2
        assert [event.step for event in events if isinstance(event, DenoiseStep)] == [1, 2, 3]
        assert sum(isinstance(event, ImageDone) for event in events) == 1
        assert [event.turn for event in events if isinstance(event, TextDone)] == [0, 1]
        pieces = "".join(event.text for event in events if isinstance(event, TextDelta) and not event.turn)
        assert pieces == next(event.text for event in events if isinstance(event, TextDone))
        assert isinstance(events[-1], RequestDone)
        same(events[-1].value, alone[PROMPTS[seed]])
    assert free(engine)


def test_closing_drops_only_its_own(engine: Engine, alone: dict[str, Any]) -> None:
    closed: list[str] = []
    kept, dropped = engine.session(), engine.session()
    request = kept.add(program("red"), 0)
    dropped.add(program("blue", closed=closed), 1)
    for _ in range(3):
        engine.step()
    dropped.close()
    assert closed == ["blue"] and list(dropped) == [] and dropped.unfinished == 0
    assert any(isinstance(event, RequestDone) for event in kept)
    same(request.result, alone["red"])
    assert free(engine)
    with pytest.raises(RuntimeError, match="closed"):
        dropped.add(program("red"), 0)


def test_one_of_many_is_cancelled(engine: Engine, alone: dict[str, Any]) -> None:
    """Nothing comes of it any more, not even what waits already; one that has not begun never begins."""
    closed: list[str] = []
    with engine.session(max_concurrent_requests=2) as session:
        a, b, c = (session.add(program(p, closed=closed), seed, seed) for seed, p in enumerate(PROMPTS[:3]))
        for _ in range(2):
            engine.step()
        session.cancel(b)
        session.cancel(c)
        session.cancel(c)
        assert closed == ["a green cat"] and session.unfinished == 1
        assert {event.request for event in session} == {0}
    same(a.result, alone["red"])
    assert not b.done and not c.done and free(engine)


def test_a_request_is_cancelled_within_a_turn(engine: Engine) -> None:
    """By a program that runs before it in the same prefill: the other is not advanced again."""
    advanced = list[int]()

    def first() -> Program:
        yield Say("a")
        session.cancel(victim)
        yield Say("b")

    def second() -> Program:
        for i in range(3):
            advanced.append(i)
            yield Say("x")

    session = engine.session()
    session.add(first(), 0)
    victim = session.add(second(), 0)
    assert [event.request for event in session] == [0]
    assert advanced == [0] and free(engine)


def test_a_program_may_close_its_own_session(engine: Engine) -> None:
    def closes() -> Program:
        yield Say("a")
        session.close()
        yield Say("never carried out")

    session = engine.session()
    session.add(closes(), 0)
    assert list(session) == [] and free(engine)


def test_a_program_cant_run_its_own_engine(engine: Engine) -> None:
    def nested() -> Program:
        yield Say("a")
        engine.run([(program("red"), 0)])

    session = engine.session()
    session.add(nested(), 0)
    (failed,) = session
    assert isinstance(failed, RequestFailed) and "runs it" in str(failed.error)
    assert free(engine)


def test_requests_join_between_turns(engine: Engine, alone: dict[str, Any]) -> None:
    """While others run, and after all have ended."""
    session = engine.session()
    requests = [session.add(program("red"), 0)]
    for event in session:
        if isinstance(event, TextDone) and len(requests) < 3:
            requests.append(session.add(program(PROMPTS[len(requests)]), len(requests)))
    requests.append(session.add(program("blue"), 3))
    assert [event.request for event in session if isinstance(event, RequestDone)] == [3]
    for request, prompt in zip(requests, PROMPTS, strict=False):
        same(request.result, alone[prompt])


@pytest.mark.parametrize("limit", [1, 2, None])
def test_a_limit_of_concurrent_requests(engine: Engine, limit: int | None) -> None:
    most, other = 0, engine.session()
    session = engine.session(limit)
    for seed, prompt in enumerate(PROMPTS):
        session.add(program(prompt), seed)
    for _ in session:
        most = max(most, len(engine.scheduler.running))
        if most == limit and not other.unfinished:
            other.add(program("red"), 0)  # a session's limit is its own
    assert most == (limit + 1 if limit else 5)


@pytest.mark.parametrize("limit", [0, -1, 1.5, True, "2"])
def test_a_limit_that_is_none_is_refused(engine: Engine, limit: Any) -> None:
    with pytest.raises(ValueError, match="max_concurrent_requests must be a whole number of at least 1"):
        engine.session(limit)


def test_a_limit_of_the_engine_is_shared_in_turns(runner: PausedRunner, tiny_tokenizer: TextTokenizer) -> None:
    """A session with many requests keeps no other one waiting for long."""
    engine, order = Engine(runner, tiny_tokenizer, max_concurrent_requests=1), list[str]()

    def noted(name: str) -> Program:
        order.append(name)
        yield Write(1, temperature=0.0)

    many, few = engine.session(), engine.session()
    for _ in range(3):
        many.add(noted("many"), 0)
    few.add(noted("few"), 0)
    while many.unfinished or few.unfinished:
        engine.step()
        assert len(engine.scheduler.running) <= 1
    assert order == ["many", "few", "many", "many"]


def test_an_interrupt_while_a_program_is_closed(engine: Engine, alone: dict[str, Any]) -> None:
    def stubborn() -> Program:
        try:
            yield Write(9, temperature=0.0)
        finally:
            raise KeyboardInterrupt

    session, other = engine.session(), engine.session()
    session.add(stubborn(), 0)
    request = other.add(program("red"), 0)
    engine.step()
    with pytest.raises(KeyboardInterrupt):
        session.close()
    assert any(isinstance(event, RequestDone) for event in other)
    same(request.result, alone["red"])
    assert list(session) == [] and free(engine)


def test_threads_share_an_engine(engine: Engine, alone: dict[str, Any]) -> None:
    results: dict[str, Any] = {}

    def work(seed: int, prompt: str) -> None:
        with engine.session() as session:
            request = session.add(program(prompt), seed)
            events = list(session)
            assert {event.request for event in events} == {0}
            results[prompt] = request.result

    threads = [in_thread(lambda s=s, p=p: work(s, p)) for s, p in enumerate(PROMPTS)]  # type: ignore[misc]
    for thread in threads:
        thread.join(WAIT)
    for prompt in PROMPTS:
        same(results[prompt], alone[prompt])
    assert free(engine)


def test_closed_from_another_thread_while_a_turn_runs(engine: Engine, runner: PausedRunner) -> None:
    """``close`` returns after the turn, when the program is closed and its rows are free; ``cancel`` at once."""
    closed: list[str] = []
    session, other = engine.session(), engine.session()
    session.add(program("red", closed=closed), 0)
    cancelled = other.add(program("blue", closed=closed), 0)
    runner.go_on.clear()
    events: list[EngineEvent] = []
    consumer = in_thread(lambda: events.extend(session))
    assert runner.inside.wait(WAIT)
    other.cancel(cancelled)
    assert cancelled.cancelled and closed == []
    closer = in_thread(session.close)
    while not session._closed:
        pass
    assert closer.is_alive() and closed == []
    runner.go_on.set()
    for thread in (closer, consumer):
        thread.join(WAIT)
        assert not thread.is_alive()
    assert sorted(closed) == ["blue", "red"] and events == [] and free(engine)


def test_a_thread_that_waits_sleeps(engine: Engine, runner: PausedRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another thread is in a turn, a waiting one calls ``step`` once: it is woken by the end of the turn."""
    steps: dict[int, int] = {}
    step = engine.step

    def counted() -> None:
        steps[threading.get_ident()] = steps.get(threading.get_ident(), 0) + 1
        step()

    monkeypatch.setattr(engine, "step", counted)
    first, second = engine.session(), engine.session()
    first.add(program("red"), 0)
    runner.go_on.clear()
    leader = in_thread(lambda: list(first))
    assert runner.inside.wait(WAIT)
    second.add(program("blue"), 0)
    follower = in_thread(lambda: list(second))
    while follower.ident not in steps:
        pass
    for _ in range(1000):
        assert steps[follower.ident] == 1
    runner.go_on.set()
    for thread in (leader, follower):
        thread.join(WAIT)
    assert free(engine)


def test_an_interrupt_ends_what_runs_and_leaves_a_usable_engine(
    engine: Engine, runner: PausedRunner, monkeypatch: pytest.MonkeyPatch, alone: dict[str, Any]
) -> None:
    def interrupted(*_: Any) -> Tensor:
        raise KeyboardInterrupt

    mine, others = engine.session(), engine.session()
    mine.add(program("red"), 0)
    others.add(program("blue"), 3)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runner, "feed", interrupted)
        list(mine)
    (failed,) = others
    assert isinstance(failed, RequestFailed) and "interrupted" in str(failed.error)
    mine.close()
    assert free(engine)
    same(engine.run([(program("blue"), 3)])[0], alone["blue"])


# ------------------------------------------------------------------------------------------------------- the pipeline


@pytest.fixture(scope="module")
def pipe() -> IRGPipeline:
    return IRGPipeline.from_pretrained("mini")


def test_two_streams_of_one_pipeline(pipe: IRGPipeline) -> None:
    """Taken in turns, each gives its own prompts' events; closing one leaves the other."""
    settings = with_options(pipe.defaults, {"mode": "direct", "num_timesteps": 4, "height": 64, "width": 64})
    wanted = pipe(["a cat", "a dog"], seed=[1, 2], settings=settings)
    cats, dogs, dropped = (pipe.stream(p, [s], settings) for p, s in (("a cat", 1), ("a dog", 2), ("a car", 3)))
    got: list[list[Any]] = [[], []]
    next(dropped)
    for _ in range(2):
        for stream, events in zip((cats, dogs), got, strict=True):
            events.append(next(stream))
    dropped.close()
    for stream, events, output in zip((cats, dogs), got, wanted, strict=True):
        events += stream
        assert [event.step for event in events if isinstance(event, DenoiseStep)] == [1, 2, 3]
        assert isinstance(events[-1], Finished) and events[-1].trajectory.seed == output.trajectory.seed
        assert np.abs(np.asarray(events[-1].trajectory.image, int) - np.asarray(output.image, int)).max() <= 1
    assert free(pipe.engine)


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, True])
def test_a_batch_size_that_is_none_is_refused(pipe: IRGPipeline, batch_size: Any) -> None:
    with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1"):
        pipe.stream("a cat", batch_size=batch_size)
