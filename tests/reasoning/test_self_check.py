"""The critic ``self-check``: what the model is asked, on what, and what its answers lead to, by texts of our own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from scripted import Scripted

from irg.critics import CriticError, CriticOptions, Review, make_critic
from irg.model.weights.checkpoint import LoadedModel
from irg.model.weights.initialize import write_folder
from irg.model.weights.profile import Profile
from irg.reasoning.events import Finished, TextDone, WaitDone
from irg.reasoning.pipeline import IRGPipeline
from irg.reasoning.protocols.base import find
from irg.reasoning.settings import with_options
from irg.reasoning.stepwise import run, start
from irg.results.reflection import after_first_sentence, first_sentence
from irg.results.trajectory import Trajectory

S, Q = "<system>", "right?"
OWN = {"critic": "self-check", "revise": "thinking", "thinking_tries": 3}
SMALL = {"size": "32", "num_timesteps": 3, "improve_num_timesteps": 3}
YES = "<think> Analysis: one cup: large (2,3), yes. nothing is wrong. Improvements: none. </think>"
NO = "<think> Analysis: one cup: none, no. one cup is missing. Improvements: a new plan. </think>"
SEEN = "<think> Analysis: in the picture: large cup at (2,3). nothing is wrong. Improvements: none. </think>"
LIST = "in the picture: large cup at (2,3)."


@pytest.fixture(scope="module")
def folder(tiny_loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_folder(folder, tiny_loaded.config)
    Profile("tiny", system_prompt=S, how_to_check=Q, settings=dict(OWN)).save(folder)
    return folder


@pytest.fixture
def pipe(folder: Path) -> IRGPipeline:
    return IRGPipeline.from_pretrained(folder, "cpu")


def scripted_run(
    pipe: IRGPipeline, texts: Sequence[str], **options: Any
) -> tuple[list[list[str]], Trajectory, list[str]]:
    """What was written on what, the trajectory, and the kinds of texts and verdicts in order."""
    scripted = Scripted(find("irg"), pipe.engine.tokenizer, {"p": texts})
    pipe.protocol.program = scripted.program  # type: ignore[method-assign]
    events = list(pipe.stream("p", [0], with_options(pipe.defaults, SMALL | options, pipe.sizes)))
    assert isinstance(events[-1], Finished), events[-1]
    kinds = [
        event.kind if isinstance(event, TextDone) else "verdict"
        for event in events
        if isinstance(event, TextDone | WaitDone)
    ]
    return scripted.writes["p"], events[-1].trajectory, kinds


def test_a_right_plan_and_a_right_image(pipe: IRGPipeline) -> None:
    contexts, found, kinds = scripted_run(pipe, ["t", YES, SEEN, YES])
    assert contexts == [[S, "p"], [S, "p", "t", Q], [S, "p", "t", "vae0", "vit0"], [S, "p", LIST, Q]]
    assert kinds == ["thinking", "check", "reflection", "check", "verdict"]
    assert len(found.images) == 1 and found.stop_reason == "done"
    assert found.turns[0].details == {"tries": 1, "check": YES}
    assert found.turns[1].critic is not None and found.turns[1].critic["done"]


def test_a_wrong_plan_is_written_anew(pipe: IRGPipeline) -> None:
    """The question and its answer leave the sequence: an image is drawn on the plan alone."""
    contexts, found, _ = scripted_run(pipe, ["t", NO, "u", NO, "v", SEEN, YES])  # the third try stands unasked
    assert contexts[:5] == [[S, "p"], [S, "p", "t", Q], [S, "p"], [S, "p", "u", Q], [S, "p"]]
    assert contexts[5] == [S, "p", "v", "vae0", "vit0"]
    assert found.turns[0].thinking == "v" and found.turns[0].details == {"tries": 3}


def test_a_wrong_image_begins_anew(pipe: IRGPipeline) -> None:
    texts = ["t", YES, SEEN, NO, "u", YES]
    contexts, found, kinds = scripted_run(pipe, texts)
    assert contexts[3:] == [[S, "p", LIST, Q], [S, "p"], [S, "p", "u", Q]]
    first, second = found.turns
    assert (second.reflection, second.thinking, second.details["tries"]) == (SEEN, "u", 1)
    assert second.critic is not None and second.critic["wrong"] == "one cup is missing" and first.critic is None
    assert kinds == ["thinking", "check", "reflection", "check", "verdict", "thinking", "check"]


def test_without_an_answer_the_models_own_verdict_stands(pipe: IRGPipeline) -> None:
    """A check that says neither yes nor no is no verdict."""
    _, found, _ = scripted_run(pipe, ["t", YES, SEEN, "perhaps"], stop_when_done=True)
    assert len(found.images) == 1 and found.stop_reason == "done"
    assert found.turns[1].critic is not None and found.turns[1].critic["failed"] == "bad_answer"


def test_steps_in_a_row_are_the_whole_request(pipe: IRGPipeline) -> None:
    options = SMALL | {"max_think_tokens": 4, "temperature": 0.0}
    whole = pipe("a cat", seed=7, **options).trajectory
    paused = run(start(pipe, "a cat", 7, **options).write())
    paused = run(run(paused.draw()).write())
    assert [done.image.tobytes() for done in paused.drawn] == [whole.images[0].tobytes()]


def test_what_it_needs(pipe: IRGPipeline, tmp_path: Path, tiny_loaded: LoadedModel) -> None:
    with pytest.raises(ValueError, match="self-check needs revise 'thinking'"):
        pipe("a cat", **SMALL, critic="self-check", revise="reflection")
    with pytest.raises(ValueError, match="self-check takes nothing after its name, got 'x'"):
        make_critic("self-check:x", CriticOptions())
    write_folder(tmp_path, tiny_loaded.config)
    options = {"critic": "self-check", "revise": "thinking", "mode": "irg"}
    with pytest.raises(ValueError, match=r"self-check needs a question: how_to_check in irg\.json"):
        IRGPipeline.from_pretrained(tmp_path, "cpu", protocol="irg", options=options)
    with pytest.raises(ValueError, match="self-check has no meaning in protocol 'bagel'"):
        IRGPipeline.from_pretrained(tmp_path, "cpu", protocol="bagel", options=options)


def test_it_looks_at_no_image() -> None:
    critic = make_critic("self-check")
    with pytest.raises(CriticError, match="looks at no image"):
        critic.review(Review("p", None)).result()  # type: ignore[arg-type]
    critic.close()


@pytest.mark.parametrize(
    ("text", "first", "rest"),
    [
        (SEEN, LIST, "nothing is wrong"),
        (NO, "one cup: none, no.", "one cup is missing"),
        ("A cup. It is blue.", "A cup.", "It is blue"),
        ("a cup", "a cup.", ""),
    ],
)
def test_sentences(text: str, first: str, rest: str) -> None:
    assert (first_sentence(text), after_first_sentence(text)) == (first, rest)
