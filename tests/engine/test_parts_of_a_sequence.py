"""Drawing on chosen parts, prefixes and choices of a text, stochastic steps, and waiting for what is outside."""

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from irg.engine.engine import Engine
from irg.engine.events import DenoiseStep, RequestDone, RequestFailed, WaitDone
from irg.engine.flow import sde_mean_and_std, stochastic_step
from irg.engine.ops import Draw, Drawn, Forget, Look, Program, Said, Say, Wait, Write, Written
from irg.engine.runner import Runner
from irg.engine.settings import DrawSettings
from irg.model.weights.checkpoint import LoadedModel
from irg.model.weights.tokenizer import TextTokenizer
from irg.sequence.images import ResizeRule, to_image

SHORT = DrawSettings(num_timesteps=4, cfg_text_scale=3.0, cfg_img_scale=1.5, cfg_interval=(0.0, 1.0))
SHOWN = Image.new("RGB", (32, 32), (90, 20, 160))


class CountingRunner(Runner):
    """Counts the tokens that are prefilled."""

    tokens = 0

    def extend(self, items: Any) -> Any:
        before = sum(context.length for context, _ in items)
        hidden = super().extend(items)
        self.tokens += sum(context.length for context, _ in items) - before
        return hidden


@pytest.fixture
def engine(tiny_loaded: LoadedModel, tiny_tokenizer: TextTokenizer) -> Engine:
    return Engine(CountingRunner(tiny_loaded.model, tiny_loaded.autoencoder, rows=2, slots=32), tiny_tokenizer)


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


NOISE, EPS = noise(1, 4, 48), noise(2, 12, 4, 4)


def edit(height: int = 32) -> Program:
    """A picture and an instruction, and nothing else."""
    shown: Said = yield Look(SHOWN, eps=EPS)
    said: Said = yield Say("redder")
    return (yield Draw(height, 32, SHORT, said.handles, shown.handles, noise=NOISE))


def edit_beside_a_conversation() -> Program:
    """The same, drawn without what was said before."""
    before: Said = yield Say("a long conversation")
    yield Write(3, forced=(65, 66, 67))
    system = (*before.handles, 1)
    shown: Said = yield Look(SHOWN, eps=EPS)
    said: Said = yield Say("redder")
    drop_text, drop_image = (*system, *said.handles), (*system, *shown.handles)
    drawn: Drawn = yield Draw(32, 32, SHORT, drop_text, drop_image, noise=NOISE, drop=system)
    yield Forget((1,))
    after: Written = yield Write(4, temperature=0.0)
    return drawn, after


def conversation() -> Program:
    yield Say("a long conversation")
    yield Write(3, forced=(65, 66, 67))
    return (yield Write(4, temperature=0.0))


def test_an_image_on_chosen_parts(engine: Engine) -> None:
    """As if the other parts had never been said, and they go on as if it had not been drawn."""
    plain, (drawn, after), alone = engine.run([(edit(), 0), (edit_beside_a_conversation(), 0), (conversation(), 0)])
    assert torch.allclose(drawn.latents, plain.latents, atol=1e-5)
    assert after.ids == alone.ids


def test_a_part_is_computed_only_where_it_is_needed(engine: Engine) -> None:
    """Image 12 tokens, instruction 8: the main branch has both, one guidance branch shares the image, one has the
    instruction alone. What was said before is computed once."""
    runner = engine.runner
    assert isinstance(runner, CountingRunner)
    engine.run([(edit(), 0)])
    assert runner.tokens == 20 + 8
    runner.tokens = 0
    engine.run([(edit_beside_a_conversation(), 0)])
    assert runner.tokens == len("a long conversation") + 2 + 20 + 8


def test_a_text_of_one_branch_alone(engine: Engine) -> None:
    """A text that only the unconditional text branch holds changes the image, and equals saying it there."""

    def program(words: str | None, drop: bool = True) -> Program:
        prompt: Said = yield Say("a cat")
        other: Said = yield Say(words or "never")
        settings = DrawSettings(num_timesteps=4, cfg_text_scale=3.0)
        drop_text = prompt.handles if words else prompt.handles + other.handles
        return (yield Draw(32, 32, settings, drop_text, noise=NOISE, drop=other.handles))

    def direct() -> Program:
        prompt: Said = yield Say("a cat")
        return (yield Draw(32, 32, DrawSettings(num_timesteps=4, cfg_text_scale=3.0), prompt.handles, noise=NOISE))

    without, plain, negative = engine.run([(program(None), 0), (direct(), 0), (program("dog"), 0)])
    assert torch.equal(without.latents, plain.latents)
    assert not torch.allclose(negative.latents, plain.latents, atol=1e-4)


def test_forgetting_everything(engine: Engine) -> None:
    def program() -> Program:
        yield Say("first")
        yield Write(2, forced=(65, 66))
        yield Forget()
        return (yield from edit())

    again, plain = engine.run([(program(), 0), (edit(), 0)])
    assert torch.allclose(again.latents, plain.latents, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------- texts


@pytest.mark.parametrize("speculative", [True, False])
def test_a_prefix_and_choices(tiny_loaded: LoadedModel, tiny_tokenizer: TextTokenizer, speculative: bool) -> None:
    """The prefix comes first and does not count; then one of the choices, then anything."""
    engine = Engine(Runner(tiny_loaded.model, tiny_loaded.autoencoder), tiny_tokenizer, speculative=speculative)

    def program(write: Write) -> Program:
        yield Say("judge")
        return (yield write)

    write = Write(4, temperature=1.0, prefix="score ", choices=("1/5", "12/5", "3/5"))
    texts = [written.text for written in engine.run([(program(write), seed) for seed in range(40)])]
    assert all(text.startswith(("score 1/5", "score 12/5", "score 3/5")) for text in texts)
    assert len({text[:9] for text in texts}) > 1
    (whole,) = engine.run([(program(Write(3, prefix="score ", choices=("1/5",))), 0)])
    assert whole.text == "score 1/5"
    assert whole.ids == tiny_tokenizer.encode("score 1/5")
    assert not whole.complete


def test_a_prefix_is_as_if_it_had_been_chosen(engine: Engine) -> None:
    def program(write: Write) -> Program:
        yield Say("judge")
        return (yield write)

    given = Write(6, temperature=0.0, prefix=(65, 66, 67))
    (a,) = engine.run([(program(given), 0)])
    chosen = Write(9, temperature=0.0, forced=a.ids)
    (b,) = engine.run([(program(chosen), 0)])
    assert a.ids == b.ids
    assert a.ids[:3] == (65, 66, 67)


# ------------------------------------------------------------------------------------------------------------ images


def test_a_stochastic_step_by_hand() -> None:
    """t = 0.8, d = 0.3, level 0.5: std = 0.5 * sqrt(4) = 1; mean = x (1 - 0.3 / 1.6) - 0.3 v (1 + 0.2 / 1.6)."""
    x, v = torch.tensor([[2.0]]), torch.tensor([[1.0]])
    mean, std = sde_mean_and_std(x, v, 0.8, 0.5, 0.5, 0.9)
    assert std == pytest.approx(1.0)
    assert mean.item() == pytest.approx(2 * 0.8125 - 0.3 * 1.125)
    assert stochastic_step(x, v, 0.8, 0.5, "sde", 0.5, 0.9) == (mean, pytest.approx(0.3**0.5))
    _, first = sde_mean_and_std(x, v, 1.0, 0.9, 0.5, 0.9)
    assert first == pytest.approx(0.5 * (1 / 0.1) ** 0.5)  # at t = 1 the second time stands below


def test_a_step_of_cps_by_hand() -> None:
    """t = 0.8, t' = 0.5, level 1/3, so sin and cos of 30 degrees: image 1.2 and noise 2.2; std = 0.5 / 2."""
    x, v = torch.tensor([[2.0]]), torch.tensor([[1.0]])
    mean, std = stochastic_step(x, v, 0.8, 0.5, "cps", 1 / 3, 0.9)
    assert std == pytest.approx(0.25) and mean.item() == pytest.approx(0.5 * 1.2 + 0.5 * 0.75**0.5 * 2.2)
    mean, std = stochastic_step(x, v, 0.8, 0.5, "cps", 0.0, 0.9)
    assert std == 0 and mean.item() == pytest.approx(1.7)  # Euler's


@given(st.floats(0.01, 1), st.floats(0, 1), st.floats(0, 1))
def test_a_step_of_cps_keeps_the_noise_level(now: float, share: float, level: float) -> None:
    """1 - t' of the image is left; old and new noise together have the variance t'^2."""
    image, noise = torch.tensor([1.0, 0.0]).double(), torch.tensor([0.0, 1.0]).double()
    after = share * now
    mean, std = stochastic_step((1 - now) * image + now * noise, noise - image, now, after, "cps", level, 0.9)
    assert mean[0].item() == pytest.approx(1 - after) and mean[1].item() ** 2 + std**2 == pytest.approx(after**2)


def test_the_last_step_of_cps_has_no_noise() -> None:
    settings = DrawSettings(num_timesteps=4, sde_noise_level=0.5, sde_window_start=1, sde_type="cps")
    assert [settings.is_stochastic(step) for step in range(3)] == [False, True, False]
    with pytest.raises(ValueError, match="sde_noise_level must be at most 1 with sde_type cps"):
        DrawSettings(sde_noise_level=1.5, sde_type="cps")


def test_stochastic_steps_are_those_of_the_window(engine: Engine) -> None:
    """Other noise changes what follows the window, and nothing before it."""
    settings = DrawSettings(num_timesteps=6, cfg_text_scale=1.0, sde_noise_level=0.7, sde_window_start=2)

    def latents(sde_noise: torch.Tensor) -> list[torch.Tensor]:
        def program() -> Program:
            yield Say("a cat")
            yield Draw(32, 32, settings, noise=NOISE, sde_noise=sde_noise)

        session = engine.session()
        session.add(program(), 0)
        return [event.latents for event in session if isinstance(event, DenoiseStep)]

    a, b = latents(noise(5, 2, 4, 48)), latents(noise(6, 2, 4, 48))
    assert [torch.equal(x, y) for x, y in zip(a, b, strict=True)] == [True, True, False, False, False]


def test_rounding_and_truncating() -> None:
    pixels = torch.tensor([127.6, 127.4, 300.0]).view(3, 1, 1) / 255 * 2 - 1
    assert to_image(pixels).getpixel((0, 0)) == (127, 127, 255)
    assert to_image(pixels, rounded=True).getpixel((0, 0)) == (128, 127, 255)


def test_a_look_of_its_own_rules(engine: Engine) -> None:
    """64 x 64 by a rule of at most 32: as many tokens as 32 x 32; the posterior's mean is a sample of noise 0."""
    big = Image.new("RGB", (64, 64), (90, 20, 160))
    rule = ResizeRule(32, 32, 16)

    def program(look: Look) -> Program:
        yield look
        return (yield Draw(32, 32, SHORT, noise=NOISE))

    mean = Look(big, vae_resize=rule, vit_resize=ResizeRule(28, 28, 14), posterior="mean")
    zeros = Look(SHOWN, eps=torch.zeros(12, 4, 4))
    a, b = engine.run([(program(mean), 0), (program(zeros), 0)])
    assert torch.allclose(a.latents, b.latents, atol=1e-5)


# ----------------------------------------------------------------------------------------------------------- waiting


def waiting(future: Future[Any]) -> Program:
    try:
        return (yield Wait(future))
    except RuntimeError as error:
        return f"fell back: {error}"


def test_others_go_on_while_one_waits(engine: Engine) -> None:
    """The engine sleeps when all wait, and wakes when the future is done, whoever sets it."""
    future: Future[str] = Future()
    events: list[Any] = []
    with engine.session() as session:
        session.add(waiting(future), 0)
        session.add(edit(), 0)
        for event in session:
            events.append(event)
            if isinstance(event, RequestDone) and event.request == 1:
                threading.Timer(0.05, lambda: future.set_result("done")).start()
    assert [e.request for e in events if isinstance(e, RequestDone)] == [1, 0]
    assert events[-2:] == [WaitDone(0, 0, "done"), RequestDone(0, "done")]


def test_no_turn_is_taken_while_all_wait(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    turns, turn = [], engine.scheduler.turn
    monkeypatch.setattr(engine.scheduler, "turn", lambda: turns.append(turn()))
    future: Future[str] = Future()
    timer = threading.Timer(0.2, lambda: future.set_result("done"))
    timer.start()
    assert engine.run([(waiting(future), 0)]) == ["done"]
    assert len(turns) == 2  # until it waits, and after that


def test_an_error_of_the_future_is_raised_in_the_program(engine: Engine) -> None:
    failed: Future[str] = Future()
    failed.set_exception(RuntimeError("no answer"))
    unhandled: Future[str] = Future()
    unhandled.set_exception(OSError("gone"))
    with engine.session() as session:
        session.add(waiting(failed), 0)
        session.add(waiting(unhandled), 0)
        done = {event.request: event for event in session}
    assert isinstance(done[0], RequestDone)
    assert done[0].value == "fell back: no answer"
    assert isinstance(done[1], RequestFailed)
    assert isinstance(done[1].error, OSError)


def test_cancelling_a_request_cancels_its_future(engine: Engine) -> None:
    future: Future[str] = Future()
    session = engine.session()
    request = session.add(waiting(future), 0)
    engine.step()
    session.cancel(request)
    assert future.cancelled()
    with pytest.raises(CancelledError):
        future.result()


def test_a_request_joins_a_sleeping_engine(engine: Engine) -> None:
    """Another thread adds a request to the session of a thread that sleeps."""
    future: Future[str] = Future()
    session = engine.session()
    session.add(waiting(future), 0)

    def later() -> None:
        session.add(releases(future), 0)

    def releases(future: Future[str]) -> Program:
        yield Say("now")
        future.set_result("released")

    threading.Timer(0.05, later).start()
    events: Iterator[Any] = iter(session)
    done = {event.request: event.value for event in events if isinstance(event, RequestDone)}
    assert done == {0: "released", 1: None}
