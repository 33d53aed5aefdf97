"""The queue in front of the engine: its bounds and order, what is dropped, and what a failure takes with it."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from irg.reasoning.events import Finished
from irg.reasoning.pipeline import IRGPipeline
from irg.reasoning.protocols.base import Job
from irg.reasoning.settings import with_options
from irg.serving import async_engine
from irg.serving.async_engine import AsyncEngine, Submission
from irg.serving.errors import ApiError
from irg.serving.metrics import Metrics
from serving import Gate, until


class Bench:
    """An engine with room for two, and jobs for it."""

    def __init__(self, pipe: IRGPipeline) -> None:
        self.pipe, self.gate = pipe, Gate()
        pipe.critics.add("gate", self.gate)
        self.metrics = Metrics()
        self.engine = AsyncEngine(pipe, 2, 3, self.metrics)

    def job(self, seed: int, **options: Any) -> Job:
        return self.pipe.jobs.make("x", with_options(self.pipe.defaults, options), seed)

    def stuck(self, seed: int = 0) -> Job:
        """A job that stands still until the gate is open."""
        return self.job(seed, critic="gate", mode="irg")

    def quick(self, seed: int = 0, **options: Any) -> Job:
        return self.job(seed, mode="direct", **options)

    def submit(self, *jobs: Job, timeout_s: float = 60) -> Submission:
        return self.engine.submit([self.pipe.requests.searching(job) for job in jobs], timeout_s)

    def free(self) -> bool:
        return self.pipe.engine.runner.cache.tokens == 0 and self.engine.sizes == (0, 0)


@pytest.fixture
def bench(tiny_pipe: IRGPipeline) -> Iterator[Bench]:
    made = Bench(tiny_pipe)
    yield made
    made.gate.open()
    made.engine.close()
    assert made.free() and not made.engine.alive


def run(work: Callable[[], Awaitable[Any]]) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(60):
            return await work()

    return asyncio.run(bounded())


async def results(submission: Submission) -> list[int]:
    """The seeds of a submission's results, as they come."""
    return [event.trajectory.seed async for event in submission.events() if isinstance(event, Finished)]


def test_the_queue_is_bounded_and_takes_all_or_none(bench: Bench) -> None:
    async def work() -> None:
        running = bench.submit(bench.stuck(1), bench.stuck(2))
        bench.submit(bench.quick(3), bench.quick(4))
        with pytest.raises(ApiError) as caught:
            bench.submit(bench.quick(5), bench.quick(6))
        assert (caught.value.status, caught.value.code) == (429, "queue_full")
        assert 1 <= int(caught.value.headers["retry-after"]) <= 60
        last = bench.submit(bench.quick(7))
        assert bench.engine.sizes == (2, 3)
        until(lambda: len(bench.gate.asked) == 2)
        bench.gate.open()
        assert sorted(await results(running)) == [1, 2] and await results(last) == [7]

    run(work)


def test_what_arrives_together_stays_in_step(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle engine does not begin while a request that came with the first is still being made into jobs."""
    monkeypatch.setattr(async_engine, "JOIN_MOST_S", 60.0)
    denoiser, sizes = bench.pipe.engine.scheduler.denoiser, []
    step = denoiser.step
    monkeypatch.setattr(denoiser, "step", lambda requests: (sizes.append(len(requests)), step(requests)))

    async def work() -> None:
        with bench.engine.arriving():
            first = bench.submit(bench.quick(1))
            await asyncio.sleep(0.05)  # many turns of the engine
            second = bench.submit(bench.quick(2))
        for submission in (first, second):
            assert [event async for event in submission.events()]

    run(work)
    assert sizes == [2] * 3  # four time points


def test_short_jobs_go_first_but_no_job_is_overtaken_for_ever(bench: Bench) -> None:
    order: list[int] = []

    async def note(submission: Submission) -> None:
        order.extend(await results(submission))

    async def work() -> None:
        bench.engine._seconds_per_work = 1.0  # what is measured depends on the machine
        first = bench.submit(bench.stuck(1), bench.stuck(2))
        long = bench.submit(bench.quick(3, num_timesteps=20))
        short = bench.submit(bench.quick(4, num_timesteps=2))
        (due_long, _, _), (due_short, _, _) = sorted(bench.engine._waiting, key=lambda entry: -entry[0])
        assert due_short < due_long
        until(lambda: len(bench.gate.asked) == 2)
        bench.gate.asked[0].set_exception(RuntimeError("the critic broke"))  # one place gets free
        await asyncio.gather(note(long), note(short))
        assert order == [4, 3]
        with pytest.raises(ApiError, match="failed while it ran"):
            await results(first)

    run(work)


def test_what_is_dropped_frees_its_rows_and_its_place(bench: Bench) -> None:
    async def work() -> None:
        dropped = bench.submit(bench.stuck(1), bench.stuck(2), bench.stuck(3))
        until(lambda: len(bench.gate.asked) == 2)
        kept = bench.submit(bench.quick(4))
        assert bench.pipe.engine.runner.cache.tokens > 0 and bench.engine.sizes == (2, 2)
        dropped.cancel()
        assert await results(kept) == [4]
        until(bench.free)
        dropped.cancel()  # again: nothing

    run(work)
    assert bench.metrics.stops.labels("cancelled")._value.get() == 3


def test_leaving_the_events_drops_the_rest(bench: Bench) -> None:
    async def work() -> None:
        events = bench.submit(bench.quick(1), bench.stuck(2)).events()
        await anext(events)
        await events.aclose()
        until(bench.free)

    run(work)


def test_time_is_up_before_and_after_a_job_has_begun(bench: Bench) -> None:
    async def work() -> None:
        running = bench.submit(bench.stuck(1), bench.stuck(2), timeout_s=0.2)
        waiting = bench.submit(bench.quick(3), timeout_s=0.1)
        with pytest.raises(ApiError) as caught:
            await results(waiting)
        assert (caught.value.status, caught.value.headers) == (504, {"retry-after": "10"})
        with pytest.raises(ApiError) as caught:
            await results(running)
        assert (caught.value.status, caught.value.headers) == (504, {"x-should-retry": "false"})
        until(bench.free)

    run(work)


def test_a_job_that_fails_fails_alone(bench: Bench) -> None:
    async def work() -> None:
        failing = bench.submit(bench.stuck(1))
        until(lambda: len(bench.gate.asked) == 1)
        bench.gate.asked[0].set_exception(RuntimeError("secret: /home/me"))
        with pytest.raises(ApiError) as caught:
            await results(failing)
        assert caught.value.status == 500 and caught.value.headers == {"x-should-retry": "false"}
        assert "secret" not in str(caught.value)
        assert await results(bench.submit(bench.quick(2))) == [2]

    run(work)


def test_ending_refuses_what_has_not_begun_and_finishes_the_rest(bench: Bench) -> None:
    async def work() -> None:
        running = bench.submit(bench.stuck(1), bench.stuck(2), bench.stuck(3))  # the third waits, its request has begun
        waiting = bench.submit(bench.quick(4))
        until(lambda: len(bench.gate.asked) == 2)
        bench.engine.drain()
        with pytest.raises(ApiError) as caught:
            await results(waiting)
        assert (caught.value.status, caught.value.code) == (503, "shutting_down")
        with pytest.raises(ApiError, match="shutting down"):
            bench.submit(bench.quick(5))
        bench.gate.open()
        assert sorted(await results(running)) == [1, 2, 3]

    run(work)


def test_the_end_of_the_thread_is_told_to_everybody(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        waiting = bench.submit(bench.stuck(1), bench.stuck(2), bench.stuck(3))
        until(lambda: len(bench.gate.asked) == 2)

        def broken(*_: object) -> None:
            raise SystemExit("the driver is gone")

        monkeypatch.setattr(type(bench.pipe.requests), "ended", broken)
        bench.gate.open()
        with pytest.raises(ApiError) as caught:
            await results(waiting)
        assert caught.value.status == 500
        until(lambda: not bench.engine.alive)
        with pytest.raises(ApiError, match="shutting down"):
            bench.submit(bench.quick(4))

    run(work)
