"""Forks of a program share what is computed, and are otherwise requests of their own; log-probabilities of tokens."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import pytest
import torch
from PIL import Image

from irg.engine.cache import Context
from irg.engine.engine import Engine
from irg.engine.events import RequestDone
from irg.engine.ops import Draw, Fork, Look, Program, Say, Wait, Write, Written
from irg.engine.runner import Runner
from irg.engine.settings import DrawSettings
from irg.model.weights.checkpoint import LoadedModel
from irg.model.weights.tokenizer import TextTokenizer
from irg.sequence import Part

IMAGE = Image.new("RGB", (48, 32), (200, 30, 60))
SEEN = Look(IMAGE, posterior="mean")
SEEDS = (11, 12, 13, 14)


class CountingRunner(Runner):
    """Counts the parts that are prefilled."""

    prefilled = 0

    def extend(self, items: Sequence[tuple[Context, Sequence[Part]]]) -> Any:
        self.prefilled += sum(len(parts) for _, parts in items)
        return super().extend(items)


@pytest.fixture
def fresh(tiny_loaded: LoadedModel, tiny_tokenizer: TextTokenizer) -> Callable[[], Engine]:
    """Makes an engine without n-gram drafts, so that batches differ by the number of requests alone."""

    def make() -> Engine:
        runner = CountingRunner(tiny_loaded.model, tiny_loaded.autoencoder, rows=1, slots=16)
        return Engine(runner, tiny_tokenizer, speculative=False)

    return make


def write(*ops: Any, write: Write) -> Program:
    for op in ops:
        _ = yield op
    return (yield write)


def fork(*ops: Any, programs: Sequence[Program], seeds: Sequence[int] = SEEDS) -> Program:
    for op in ops:
        _ = yield op
    return (yield Fork(tuple(programs), tuple(seeds)))


def free(engine: Engine) -> bool:
    return engine.runner.cache.rows_in_use == 0


def test_forks_write_what_separate_requests_write(fresh: Callable[[], Engine]) -> None:
    """The image and the prompt are computed once; texts are equal, log-probabilities up to rounding."""
    op = Write(9, temperature=1.0, logprobs=True)
    apart = fresh()
    separate = apart.run([(write(Say("a red cup"), SEEN, write=op), seed) for seed in SEEDS])
    engine = fresh()
    forks = [write(write=op) for _ in SEEDS]
    (together,) = engine.run([(fork(Say("a red cup"), SEEN, programs=forks), 0)])
    assert [w.ids for w in together] == [w.ids for w in separate] and len({w.ids for w in together}) == 4
    for one, other in zip(together, separate, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
    assert isinstance(apart.runner, CountingRunner) and isinstance(engine.runner, CountingRunner)
    assert (apart.runner.prefilled, engine.runner.prefilled) == (12, 3)
    assert free(engine)


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("speculative", [False, True])
def test_log_probabilities_are_those_of_the_whole_softmax(
    fresh: Callable[[], Engine], temperature: float, speculative: bool
) -> None:
    """Of chosen tokens alone, eos included, and whatever top-k leaves to choose from."""
    engine = fresh()
    if speculative:
        engine = Engine(engine.runner, engine.tokenizer, ("abcabc",), speculative=True)
    op = Write(6, temperature, forced=(5, 6, 7, 5, 6), prefix=(9, 9), top_k=2, logprobs=True)
    (written,) = engine.run([(write(Say("x"), write=op), 3)])
    assert written.ids == (9, 9, 5, 6, 7, 5, 6) and written.complete and len(written.logprobs) == 6
    logits_NV = engine.score([Say("x")], written.ids)[2:]
    wanted_NV = (logits_NV / (temperature or 1.0)).log_softmax(dim=-1)
    chosen = torch.tensor([5, 6, 7, 5, 6, engine.runner.grammar.special.eos])
    assert written.logprobs == pytest.approx(wanted_NV.gather(1, chosen[:, None]).flatten().tolist(), abs=1e-5)


def test_a_text_that_is_cut_off_has_no_log_probability_of_its_end(fresh: Callable[[], Engine]) -> None:
    programs = [write(write=Write(3, 1.0, forced=(5,) * 9, logprobs=wanted)) for wanted in (True, False)]
    ((cut, plain),) = fresh().run([(fork(programs=programs, seeds=(1, 2)), 0)])
    assert len(cut.logprobs) == len(cut.ids) == 3 and not cut.complete
    assert plain.logprobs == ()


def test_forks_draw_and_fork_again(fresh: Callable[[], Engine]) -> None:
    """Images of forks are those of separate requests; a fork of a fork goes on from its own text."""
    settings = DrawSettings(num_timesteps=3, cfg_text_scale=2.0)

    def draw(seed: int) -> Program:
        written: Written = yield Write(4, 1.0, forced=(5, 6))
        inner = yield Fork((write(write=Write(2, 0.0, logprobs=True)),) * 1, (seed,))
        image = yield Draw(32, 32, settings, drop_text=written.handles)
        return image.latents, inner[0]

    def separate(seed: int) -> Program:
        yield Say("p")
        return (yield from draw(seed))

    apart = [fresh().run([(separate(seed), seed)])[0] for seed in (1, 2)]
    engine = fresh()
    (together,) = engine.run([(fork(Say("p"), programs=[draw(1), draw(2)], seeds=(1, 2)), 0)])
    for (latents, inner), (alone, text) in zip(together, apart, strict=True):
        assert torch.allclose(latents, alone, atol=1e-4) and inner.ids == text.ids
        assert inner.logprobs == pytest.approx(text.logprobs, abs=1e-5)
    assert not torch.allclose(together[0][0], together[1][0], atol=1e-2)
    assert free(engine)


def test_the_error_of_a_fork_is_raised_in_the_program(fresh: Callable[[], Engine]) -> None:
    closed: list[str] = []

    def bad() -> Program:
        yield Write(1, 0.0)
        raise KeyError("bad")

    def long() -> Program:
        try:
            yield Write(50, 0.0, forced=(5,) * 40)
        finally:
            closed.append("long")

    def outer() -> Program:
        yield Say("p")
        try:
            yield Fork((long(), bad()), (1, 2))
        except KeyError:
            return (yield Write(2, 0.0, forced=(7,)))

    engine = fresh()
    (written,) = engine.run([(outer(), 0)])
    assert written.ids == (7,) and closed == ["long"] and free(engine)
    with pytest.raises(KeyError, match="bad"):
        engine.run([(fork(Say("p"), programs=[bad()], seeds=(1,)), 0)])
    assert free(engine)


def test_cancelling_a_program_closes_its_forks(fresh: Callable[[], Engine]) -> None:
    closed: list[int] = []

    def waiting(number: int) -> Program:
        try:
            yield Write(1, 0.0)
            yield Wait(Future())
        finally:
            closed.append(number)

    engine = fresh()
    with engine.session(max_concurrent_requests=1) as session:
        request = session.add(fork(Say("p"), programs=[waiting(1), waiting(2)], seeds=(1, 2)), 0)
        for _ in range(4):
            engine.step()
        assert len(request.forks) == 2
        session.cancel(request)
        assert sorted(closed) == [1, 2] and free(engine)
        session.add(write(Say("q"), write=Write(1, 0.0)), 0)
        assert isinstance(list(session)[-1], RequestDone)


def test_forks_may_wait_and_tell_nobody(fresh: Callable[[], Engine]) -> None:
    """All forks waiting puts the engine to sleep until a future is done; their texts are no events."""
    import threading

    future: Future[str] = Future()

    def waiting() -> Program:
        yield Write(2, 0.0, forced=(5,))
        return (yield Wait(future))

    engine = fresh()
    with engine.session() as session:
        session.add(fork(Say("p"), programs=[waiting(), waiting()], seeds=(1, 2)), 0)
        threading.Timer(0.2, future.set_result, ["done"]).start()
        (event,) = list(session)
    assert isinstance(event, RequestDone) and event.value == ["done", "done"]


def test_a_fork_needs_programs_and_seeds() -> None:
    with pytest.raises(ValueError, match="as many seeds, got 1 and 2 seeds"):
        Fork((write(write=Write(1)),), (1, 2))
    with pytest.raises(ValueError, match="got 0"):
        Fork((), ())
