"""An error belongs to its request: in every phase, the others go on as if nothing had happened."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from irg.engine.cache import Context
from irg.engine.engine import Engine
from irg.engine.events import RequestDone, RequestFailed
from irg.engine.ops import Draw, Drawn, Look, Program, Say, Write
from irg.engine.runner import Branches, Runner
from irg.engine.settings import DrawSettings
from irg.model.network.token_batch import TokenBatch
from irg.model.weights.checkpoint import LoadedModel
from irg.model.weights.tokenizer import TextTokenizer

POISON = 200  # a token id
HUGE = 1e9  # a value of the noise
SHORT = DrawSettings(num_timesteps=4, cfg_text_scale=3.0, cfg_img_scale=2.0)


class Broken(Exception):
    """What a fault raises."""


def program(seed: int, say: int = 7, write: int = 8, noise: float = 1.0) -> Program:
    """Texts and an image of its own for every seed; one of them may carry a mark."""
    start = torch.randn(4, 48, generator=torch.Generator().manual_seed(seed))
    start[0, 0] = noise
    said = yield Say((seed, say, 9))
    written = yield Write(8, forced=(seed, write, 10))
    yield Say((3, seed))
    drawn = yield Draw(32, 32, SHORT, said.handles, written.handles, noise=start)
    after = yield Write(5, temperature=0.0)
    return drawn, after


@pytest.fixture
def engine(tiny_loaded: LoadedModel, tiny_tokenizer: TextTokenizer) -> Engine:
    return Engine(Runner(tiny_loaded.model, tiny_loaded.autoencoder), tiny_tokenizer)


@pytest.fixture(scope="module")
def alone(tiny_loaded: LoadedModel) -> list[Any]:
    return [Engine(Runner(tiny_loaded.model, tiny_loaded.autoencoder)).run([(program(i), i)])[0] for i in range(4)]


def same(got: Any, wanted: Any) -> None:
    assert torch.allclose(got[0].latents, wanted[0].latents, atol=1e-5)
    assert got[1].ids == wanted[1].ids


def test_a_sequence_longer_than_the_models_is_refused_before_it_is_computed(
    tiny_loaded: LoadedModel, tiny_tokenizer: TextTokenizer, engine: Engine
) -> None:
    most = tiny_loaded.config.decoder.max_position_embeddings
    with engine.session() as session:
        for length in (most - 2, most - 1):  # a text begins and ends with a token of its own
            session.add(iter_say(length), 0)
        events = list(session)
    (failed,) = (event for event in events if isinstance(event, RequestFailed))
    assert failed.request == 1 and f"take {most + 1:,} positions, and the model has {most:,}" in str(failed.error)


def iter_say(length: int) -> Program:
    """Says so many tokens, and ends."""
    yield Say((7,) * length)


def outcome(engine: Engine, programs: Sequence[Program]) -> dict[int, Any]:
    """Values and errors by request; afterwards every row is free."""
    with engine.session() as session:
        for seed, each in enumerate(programs):
            session.add(each, seed)
        done: dict[int, Any] = {}
        for event in session:
            if isinstance(event, RequestDone):
                done[event.request] = event.value
            elif isinstance(event, RequestFailed):
                done[event.request] = event.error
    cache = engine.runner.cache
    assert cache.rows_in_use == 0 and not engine.scheduler.running
    return done


def others_are_the_same(done: dict[int, Any], alone: list[Any], failed: int = 1) -> None:
    for i in set(range(4)) - {failed}:
        same(done[i], alone[i])


def patch_forward(engine: Engine, patch: pytest.MonkeyPatch, bad: Callable[[TokenBatch], bool]) -> None:
    """The network fails at its end, when it has written its keys and values, if a batch is bad."""
    model = engine.runner.model
    forward = model.forward

    def faulty(batch: TokenBatch, attend: Any) -> Any:
        out = forward(batch, attend)
        if bad(batch):
            raise torch.OutOfMemoryError("made up")
        return out

    patch.setattr(model, "forward", faulty)


def has_token(batch: TokenBatch) -> bool:
    return bool((batch.ids_U == POISON).any())


def has_noise(batch: TokenBatch) -> bool:
    return batch.latents_GD is not None and bool((batch.latents_GD > HUGE / 2).any())


@pytest.mark.parametrize(
    ("marks", "bad"),
    [({"say": POISON}, has_token), ({"write": POISON}, has_token), ({"noise": HUGE}, has_noise)],
    ids=["prefill", "decode", "denoise"],
)
def test_a_forward_that_fails_for_one(
    engine: Engine,
    alone: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    marks: dict[str, Any],
    bad: Callable[[TokenBatch], bool],
) -> None:
    patch_forward(engine, monkeypatch, bad)
    done = outcome(engine, [program(i, **(marks if i == 1 else {})) for i in range(4)])
    assert isinstance(done[1], torch.OutOfMemoryError)
    others_are_the_same(done, alone)
    same(outcome(engine, [program(0)])[0], alone[0])


def test_the_autoencoder_fails_for_one(engine: Engine, alone: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    decode = engine.runner.decode_latents

    def faulty(latents_BChw: Tensor) -> Tensor:
        if bool((latents_BChw > HUGE / 2).any()):
            raise Broken("vae")
        return decode(latents_BChw)

    monkeypatch.setattr(engine.runner, "decode_latents", faulty)
    done = outcome(engine, [program(i, noise=HUGE if i == 1 else 1.0) for i in range(4)])
    assert isinstance(done[1], Broken)
    others_are_the_same(done, alone)


class Small(Runner):
    """A device on which a forward has room for two requests (of up to three branches)."""

    refused = 0

    def check(self, count: int, most: int = 2) -> None:
        if count > most:
            self.refused += 1
            raise torch.OutOfMemoryError("made up")

    def extend(self, items: Any) -> Any:
        self.check(len(items), 4)
        return super().extend(items)

    def feed(self, contexts: Sequence[Context], texts_BN: Any) -> Tensor:
        self.check(len(contexts))
        return super().feed(contexts, texts_BN)

    def branches(self, blocks: Any, times: Any = ()) -> Branches:
        self.check(len(blocks), 6)
        return super().branches(blocks, times)

    def decode_latents(self, latents_BChw: Tensor) -> Tensor:
        self.check(len(latents_BChw))
        return super().decode_latents(latents_BChw)


def test_batches_get_smaller_when_memory_runs_out(tiny_loaded: LoadedModel, alone: list[Any]) -> None:
    """Everything that fits alone is carried out; a phase does not try again and again."""
    runner = Small(tiny_loaded.model, tiny_loaded.autoencoder)
    done = outcome(Engine(runner, speculative=False), [program(i) for i in range(4)])
    others_are_the_same(done, alone, failed=-1)
    assert runner.refused == 4  # once in each of: decoding, branches' prefill, denoising, autoencoder


def raises_at_once() -> Program:
    raise Broken("at once")
    yield


def raises_later() -> Program:
    yield Write(3, temperature=0.0)
    raise Broken("later")


def ignores_its_end() -> Program:
    try:
        yield Say((1, 2))
        raise Broken("in between")
    finally:
        yield Say((3,))


@pytest.mark.parametrize("bad", [raises_at_once, raises_later, ignores_its_end])
def test_a_program_that_raises(engine: Engine, alone: list[Any], bad: Callable[[], Program]) -> None:
    done = outcome(engine, [program(0), bad(), program(2), program(3)])
    if bad is not ignores_its_end:  # whose last operation is carried out before its error comes
        assert isinstance(done[1], Broken)
    others_are_the_same(done, alone)


def one(op: Callable[[], Any]) -> Program:
    yield Say((1, 2))
    yield op()


@pytest.mark.parametrize(
    "op",
    [
        lambda: "draw",
        lambda: Say((5, 10_000)),
        lambda: Say(5),
        lambda: Write(5, temperature=-1.0),
        lambda: Write(5, temperature=float("nan")),
        lambda: Write(-1),
        lambda: Write(5, forced=(10_000, 3)),
        lambda: Draw(8, 8, SHORT),
        lambda: Draw(32, 32, SHORT, noise=torch.zeros(3, 48)),
        lambda: Draw(32, 32, SHORT, noise="none"),
        lambda: Look("an image"),
    ],
)
def test_an_operation_that_cant_be_carried_out(engine: Engine, alone: list[Any], op: Callable[[], Any]) -> None:
    done = outcome(engine, [program(0), one(op), program(2), program(3)])
    assert isinstance(done[1], Exception)
    others_are_the_same(done, alone)


def test_errors_keep_no_tensors_alive(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The frames of a forward that failed are cleared: an error that somebody keeps holds no memory of the device."""
    patch_forward(engine, monkeypatch, has_token)
    error = outcome(engine, [program(0, say=POISON)])[0]
    trace, frames = error.__traceback__, []
    while trace is not None:
        frames.append(trace.tb_frame)
        trace = trace.tb_next
    inner = [frame for frame in frames if frame.f_code.co_name in ("extend", "faulty")]
    assert len(inner) >= 2 and all(not frame.f_locals for frame in inner)


def test_run_raises_the_first_error(engine: Engine) -> None:
    with pytest.raises(Broken, match="at once"):
        engine.run([(program(0), 0), (raises_at_once(), 1)])
    (result,) = engine.run([(program(0), 0)])
    assert isinstance(result[0], Drawn)
