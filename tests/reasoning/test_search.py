"""Search at test time: candidates, scores, what is kept, budgets; scripted selectors over a tiny model."""

import itertools
import random
import threading
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from irg.critics import CriticError, Review, Verdict
from irg.model.weights.checkpoint import LoadedModel
from irg.model.weights.initialize import write_folder
from irg.reasoning import search
from irg.reasoning.events import CandidateDone, Failed, Finished, ImageDone
from irg.reasoning.pipeline import IRGPipeline
from irg.reasoning.protocols.base import Job
from irg.reasoning.search import Searching, candidate_seed
from irg.reasoning.selectors import Selector
from irg.reasoning.settings import Settings, check_options, with_options
from irg.results.trajectory import Trajectory, Turn

SMALL = {"height": 32, "width": 32, "num_timesteps": 3, "improve_num_timesteps": 3, "max_think_tokens": 4}


def now(value: Any) -> "Future[Any]":
    done: Future[Any] = Future()
    if isinstance(value, Exception):
        done.set_exception(value)
    else:
        done.set_result(value)
    return done


class Scripted:
    """A critic whose scores are given in the order in which images are shown to it; an exception is a failure."""

    name = "scripted"

    def __init__(self, *scores: Any) -> None:
        self.scores, self.seen = iter(scores), []

    def review(self, review: Review) -> "Future[Verdict]":
        self.seen.append(review)
        score = next(self.scores)
        return now(score if isinstance(score, Exception) else Verdict("", "x", False, score))

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def pipe(tiny_loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> IRGPipeline:
    folder = tmp_path_factory.mktemp("tiny")
    write_folder(folder, tiny_loaded.config)
    pipe = IRGPipeline.from_pretrained(folder, "cpu")
    pipe.defaults = with_options(pipe.defaults, SMALL)
    return pipe


@pytest.fixture
def critic(pipe: IRGPipeline):
    def use(*scores: Any) -> Scripted:
        made = Scripted(*scores)
        pipe.critics.add("scripted", made)
        return made

    return use


def pixels(image: Image.Image | None) -> Any:
    return np.asarray(image)


# ---- choosing, without a model


def job(settings: Settings, seed: int = 7) -> Job:
    return Job("a cat", "", settings, 32, 32, seed=seed)


def trajectory(prompt: str, seed: int, images: int) -> Trajectory:
    turns = [Turn("t", Image.new("RGB", (2, 2), (seed % 250, number, 0))) for number in range(images)]
    return Trajectory(prompt, "irg", seed, "m", {}, [*turns, Turn("all is right", None)], stopped=True)


@pytest.mark.parametrize("case", range(60))
def test_keep_best_never_ends_worse_than_the_best_judged_image(case: int) -> None:
    rng = random.Random(case)
    settings = Settings(candidates=rng.randint(1, 4), rounds=3, keep_best=True)
    scores: dict[tuple[int, int], float] = {}

    def score(review: Review) -> "Future[float]":
        if rng.random() < 0.2:
            return now(CriticError("outage", "gone"))
        value = scores[review.image.getpixel((0, 0))[:2]] = rng.choice([0.0, 0.25, 0.5, 1.0])
        return now(value)

    searching = Searching(job(settings), Selector("scripted", score))
    order = list(range(settings.candidates))
    rng.shuffle(order)  # candidates end in any order
    for k in order:
        searching.end(k, trajectory("a cat", searching.attempts[k].job.seed, rng.randint(1, 4)))
    assert searching.ready
    result = searching.result()
    if scores:
        assert scores[result.image.getpixel((0, 0))[:2]] == max(scores.values())
    else:
        assert (
            result.seed == 7
            and result.best is None
            and pixels(result.image).tolist() == pixels(result.images[-1]).tolist()
        )
    assert result.search is not None and result.search.candidates[result.search.chosen].seed == result.seed
    # and what stands after fewer edits is the best until then
    kept = result.search.candidates[result.search.chosen].scores
    for edits in range(len(kept)):
        known = [value for value in kept[: edits + 1] if value is not None]
        shown = result.image_after(edits).getpixel((0, 0))[1]
        assert result.best is None or not known or kept[shown] == max(known)


def test_an_image_has_to_be_better_to_take_an_earlier_ones_place() -> None:
    searching = Searching(job(Settings(candidates=3, keep_best=True)), Selector("s", lambda review: now(0.5)))
    for k in (2, 1, 0):
        searching.end(k, trajectory("a cat", searching.attempts[k].job.seed, 3))
    result = searching.result()
    assert result.search.chosen == 0 and result.best == 0


def test_seeds_of_candidates_are_the_requests_own_and_others() -> None:
    seeds = [candidate_seed(seed, k) for seed in (0, 1, 2**40) for k in range(5)]
    assert len(set(seeds)) == 15 and candidate_seed(2**40, 0) == 2**40
    assert candidate_seed(7, 1) == candidate_seed(7, 1) == 3587390562


@pytest.mark.parametrize(
    ("candidates", "images", "most"),
    [(4, 4, [1, 1, 1, 1]), (4, 6, [2, 2, 1, 1]), (4, 3, [1, 1, 1]), (1, 3, [3]), (2, 1, [1])],
)
def test_a_budget_of_images_is_given_out_beforehand(candidates: int, images: int, most: list[int]) -> None:
    searching = Searching(job(Settings(candidates=candidates, budget_images=images)), None)
    assert [attempt.most_images for attempt in searching.attempts] == most
    assert [searching.may_begin(len(most) - 1, turn) for turn in (0, most[-1] - 1, most[-1])] == [True, True, False]


def test_a_budget_of_seconds_begins_nothing_beyond_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(100)  # a second later each time it is read
    monkeypatch.setattr(search.time, "monotonic", lambda: next(clock))
    searching = Searching(job(Settings(candidates=3, budget_seconds=2.5)), None)
    assert [searching.may_begin(k, 0) for k in (0, 1, 2)] == [True] * 3  # after 0, 1, 2 seconds
    assert not searching.may_begin(0, 1) and not searching.may_begin(1, 0)  # after 3, 4
    assert searching.may_begin(0, 0)  # the first always begins
    assert searching.notes == ["no candidate and no round was begun after 2.5 seconds"]


# ---- through the pipeline


def test_one_candidate_is_the_plain_run(pipe: IRGPipeline, critic: Any) -> None:
    critic()  # asked for nothing
    plain, same = pipe("a cat", seed=7), pipe("a cat", seed=7, candidates=1)
    assert plain.trajectory.to_dict()["turns"] == [
        {**turn, "seconds": old["seconds"]}
        for turn, old in zip(same.trajectory.to_dict()["turns"], plain.trajectory.to_dict()["turns"], strict=True)
    ]
    assert plain.trajectory.search is None and "search" not in same.trajectory.to_dict()
    for one, other in zip(plain.trajectory.images, same.trajectory.images, strict=True):
        assert pixels(one).tolist() == pixels(other).tolist()


def test_the_best_candidate_is_kept_and_the_others_are_recorded(pipe: IRGPipeline, critic: Any, tmp_path: Path) -> None:
    scripted = critic(0.1, 0.9, 0.4)
    out = pipe("a cat", seed=7, candidates=3, select="scripted", rounds=2, batch_size=1)
    found = out.trajectory
    seeds = [candidate_seed(7, k) for k in range(3)]
    assert found.seed == seeds[1] and found.search.chosen == 1 and found.best is None
    assert [one.seed for one in found.search.candidates] == seeds
    assert [one.scores for one in found.search.candidates] == [[None, None, s] for s in (0.1, 0.9, 0.4)]
    assert found.search.why == "image 3 of candidate 2 has the highest score of 3 judged images: 0.900"
    assert [review.turn for review in scripted.seen] == [3, 3, 3]  # last images only
    alone = pipe("a cat", seed=seeds[1], rounds=2)
    assert pixels(out.image).tolist() == pixels(alone.image).tolist()
    folder = out.save(tmp_path / "out")
    assert sorted(path.name for path in folder.glob("candidate-*")) == ["candidate-1.png", "candidate-3.png"]
    again = Trajectory.load(folder)
    assert again.to_dict() == found.to_dict()
    assert pixels(again.search.candidates[2].image).tolist() == pixels(found.search.candidates[2].image).tolist()
    assert again.search.candidates[1].image is None
    page = (folder / "report.html").read_text()
    assert f"2, chosen: seed {seeds[1]}, score –, –, 0.90" in page and found.search.why in page
    again.save(folder, overwrite=True)


def test_keep_best_over_rounds(pipe: IRGPipeline, critic: Any, tmp_path: Path) -> None:
    critic(0.3, 0.8, 0.2)
    out = pipe("a cat", seed=7, rounds=2, keep_best=True, select="scripted")
    assert out.trajectory.best == 1 and pixels(out.image).tolist() == pixels(out.trajectory.images[1]).tolist()
    assert out.trajectory.search.candidates[0].scores == [0.3, 0.8, 0.2]
    assert [pixels(out.trajectory.image_after(k)).sum() for k in range(3)] == [
        pixels(out.trajectory.images[k]).sum() for k in (0, 1, 1)
    ]
    again = Trajectory.load(out.save(tmp_path / "out"))
    assert again.best == 1 and pixels(again.image).tolist() == pixels(out.image).tolist()
    assert "px · " in (page := (tmp_path / "out/report.html").read_text()) and page.count("· kept") == 1


def test_selection_is_the_same_every_time(pipe: IRGPipeline) -> None:
    """By what an image shows, in any order and at any number of requests at a time."""

    class ByBrightness(Scripted):
        def review(self, review: Review) -> "Future[Verdict]":
            return now(Verdict("", "x", False, float(np.asarray(review.image).mean() / 255)))

    pipe.critics.add("scripted", ByBrightness())
    runs = [
        pipe(["a cat", "a dog"], seed=[3, 4], candidates=3, keep_best=True, select="scripted", batch_size=size)
        for size in (1, 6)
    ]
    for one, other in zip(*runs, strict=True):
        assert one.trajectory.seed == other.trajectory.seed and one.trajectory.best == other.trajectory.best
    assert len({out.trajectory.search.chosen for out in runs[0]} | {out.trajectory.best for out in runs[0]}) > 1


def test_without_scores_the_first_candidate_stays_with_a_note(pipe: IRGPipeline, critic: Any) -> None:
    critic(CriticError("outage", "no server"), CriticError("outage", "no server"))
    out = pipe("a cat", seed=7, candidates=2, select="scripted", batch_size=1)
    assert out.trajectory.seed == 7 and out.trajectory.search.chosen == 0
    assert out.trajectory.search.notes == [
        "image 2 of candidate 1 has no score: no server",
        "image 2 of candidate 2 has no score: no server",
    ]
    assert out.trajectory.search.why == "image 2 of candidate 1: no image could be judged"
    critic(CriticError("outage", "no server"), 0.1)
    assert pipe("a cat", seed=7, candidates=2, select="scripted", batch_size=1).trajectory.search.chosen == 1


def test_a_selector_that_raises_is_a_failed_score(pipe: IRGPipeline) -> None:
    class Broken(Scripted):
        def review(self, review: Review) -> "Future[Verdict]":
            raise RuntimeError("closed")

    pipe.critics.add("scripted", Broken())
    out = pipe("a cat", seed=7, candidates=2, select="scripted")
    assert out.trajectory.seed == 7 and "closed" in out.trajectory.search.notes[0]


def test_a_failed_candidate_is_left_out(pipe: IRGPipeline, critic: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    program = search.Searching.limited

    def limited(self: Searching, candidate: int, own: Any) -> Any:
        if candidate == 0:
            raise MemoryError("out of memory")
        return (yield from program(self, candidate, own))

    monkeypatch.setattr(search.Searching, "limited", limited)
    critic(0.0)
    out = pipe("a cat", seed=7, candidates=2, select="scripted")
    assert out.trajectory.seed == candidate_seed(7, 1)
    assert out.trajectory.search.notes == ["candidate 1 failed: out of memory"]
    (event,) = [one for one in pipe.stream("a cat", [7]) if isinstance(one, Finished | Failed)]
    assert isinstance(event, Failed) and isinstance(event.error.__cause__, MemoryError)


def test_slow_scores_hold_up_nobody(pipe: IRGPipeline) -> None:
    """The first prompt's scores come when the second prompt is finished."""
    waiting: list[Future[Verdict]] = []

    class Slow(Scripted):
        def review(self, review: Review) -> "Future[Verdict]":
            waiting.append(Future())
            return waiting[-1]

    pipe.critics.add("scripted", Slow())
    settings = replace(pipe.defaults, candidates=2, select="scripted")
    order = []
    for event in pipe.stream(["a cat", "a dog"], [1, 2], settings, batch_size=1):
        if isinstance(event, CandidateDone) and (event.request, event.candidate) == (1, 0):
            assert len(waiting) == 3  # both of the cat wait, and a dog is drawn
            for future in waiting[:2]:
                future.set_result(Verdict("", "x", False, 0.5))
        if isinstance(event, CandidateDone) and (event.request, event.candidate) == (1, 1):
            answer = [Verdict("", "x", False, 0.5) for _ in range(2)]
            threading.Timer(
                0.05, lambda a=answer: [f.set_result(v) for f, v in zip(waiting[2:], a, strict=True)]
            ).start()
        if isinstance(event, Finished):
            order.append(event.request)
    assert order == [0, 1]


def test_events_are_those_of_the_first_candidate(pipe: IRGPipeline, critic: Any) -> None:
    critic(0.1, 0.2, 0.3)
    settings = replace(pipe.defaults, candidates=3, select="scripted", rounds=1)
    events = list(pipe.stream("a cat", [7], settings))
    assert [event.turn for event in events if isinstance(event, ImageDone)] == [0, 1]
    assert sorted(event.candidate for event in events if isinstance(event, CandidateDone)) == [0, 1, 2]
    assert {event.request for event in events} == {0} and isinstance(events[-1], Finished)


def test_a_budget_of_images_is_kept(pipe: IRGPipeline, critic: Any) -> None:
    critic(0.1, 0.2, 0.3, 0.4)
    out = pipe(
        "a cat", seed=7, candidates=2, rounds=3, budget_images=3, keep_best=True, select="scripted", batch_size=1
    )
    assert [len(one.scores) for one in out.trajectory.search.candidates] == [2, 1]
    assert out.trajectory.search.images == 3
    assert out.trajectory.search.notes == ["no round was begun after 3 images"]
    # without candidates it limits the loop
    alone = pipe("a cat", seed=7, rounds=3, budget_images=2)
    assert len(alone.trajectory.images) == 2 and alone.trajectory.search.select == ""
    assert alone.trajectory.search.why == "image 2 of candidate 1: nothing was judged"
    assert (alone.trajectory.stopped, alone.trajectory.stop_reason) == (True, "budget")


def test_a_budget_of_no_seconds_is_the_first_image(pipe: IRGPipeline, critic: Any) -> None:
    critic(0.1)
    out = pipe("a cat", seed=7, candidates=3, rounds=2, budget_seconds=0, select="scripted")
    assert [one.seed for one in out.trajectory.search.candidates] == [7] and len(out.trajectory.images) == 1


def test_the_critic_that_reflects_selects(pipe: IRGPipeline, critic: Any) -> None:
    made = critic(0.1, 0.2, 0.3, 0.9)  # a round, and a score of its image; the same for the second candidate
    out = pipe("a cat", seed=7, candidates=2, critic="scripted", select="critic", rounds=1, batch_size=1)
    assert out.trajectory.search.chosen == 1 and out.trajectory.search.select == "scripted"
    assert [review.turn for review in made.seen] == [1, 2, 1, 2]
    with pytest.raises(ValueError, match="select 'critic' needs a critic"):
        pipe("a cat", seed=7, candidates=2, select="critic")


def test_the_model_itself_selects(pipe: IRGPipeline) -> None:
    out = pipe("a cat", seed=7, candidates=2, mode="direct")
    scores = [one.scores[0] for one in out.trajectory.search.candidates]
    assert out.trajectory.search.select == "self" and all(0 < score < 1 for score in scores)
    assert out.trajectory.search.chosen == scores.index(max(scores)) and scores[0] != scores[1]
    again = pipe("a cat", seed=7, candidates=2, mode="direct")
    assert [one.scores[0] for one in again.trajectory.search.candidates] == pytest.approx(scores, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"candidates": 0}, "candidates must be"),
        ({"candidates": True}, "candidates must be"),
        ({"budget_images": 0}, "budget_images must be"),
        ({"budget_seconds": -1}, "budget_seconds must be"),
        ({"keep_best": 1}, "keep_best must be true or false"),
        ({"select": ""}, "select must be"),
        ({"select": "self"}, "select has no meaning for one image"),
        ({"select": "endpiont:m", "candidates": 2}, "no critic 'endpiont'"),
    ],
)
def test_what_can_not_be_searched_is_said_before_a_model_is_there(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_options(options)
