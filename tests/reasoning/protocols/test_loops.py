"""The whole loop of every protocol on a tiny random model, with texts of our own in the place of the official ones and
of the model's: what each text and each image is made on, where a request ends, and that requests do not mix."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scripted import Drawing, Scripted

from irg.model.weights.checkpoint import LoadedModel
from irg.model.weights.initialize import write_folder
from irg.reasoning.events import Finished
from irg.reasoning.pipeline import IRGPipeline
from irg.reasoning.protocols.base import Protocol, Task, find
from irg.reasoning.protocols.umm_reflection import Verdict
from irg.reasoning.settings import with_options
from irg.results.trajectory import Trajectory
from irg.sequence.images import ResizeRule

SMALL = {"size": "32", "num_timesteps": 3, "improve_num_timesteps": 3}
TEXTS = {
    "prompt_sentence": "P[{user_prompt}]",
    "thought_sentence": "T[{think_text}|{prompt}]",
    "suggestion_sentence": "S[{refine_output}|{prompt}]",
    "question": "Q[{prompt}]",
} | {f"stop_phrase_{n}": f"STOP{n}" for n in (1, 2, 3, 4)}
RED = Image.new("RGB", (32, 32), "red")
RED.putpixel((3, 4), (0, 0, 255))


@pytest.fixture(scope="module")
def folder(tiny_loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_folder(folder, tiny_loaded.config)
    return folder


class Runs:
    """Pipelines by protocol, with texts of our own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.pipes = folder, dict[str, IRGPipeline]()

    def pipe(self, protocol: str) -> IRGPipeline:
        if protocol not in self.pipes:
            texts = {name: TEXTS.get(name, f"<{name}>") for name in find(protocol).texts}
            system = "<system>" if protocol == "irg" else None
            loaded = IRGPipeline.from_pretrained(
                self.folder, "cpu", protocol=protocol, system_prompt=system, texts=texts, offline=True
            )
            self.pipes[protocol] = loaded
        return self.pipes[protocol]

    def __call__(
        self,
        protocol: str,
        texts: dict[str, Sequence[str]],
        task: Task = "generate",
        given: Sequence[Image.Image] = (),
        replaced: dict[int, Image.Image] | None = None,
        **options: Any,
    ) -> tuple[Scripted, dict[str, Trajectory]]:
        """Run a request for each prompt, together."""
        pipe = self.pipe(protocol)
        tokenizer = pipe.engine.tokenizer
        assert tokenizer is not None
        scripted = Scripted(find(protocol), tokenizer, texts, replaced or {})
        pipe.protocol.program = scripted.program  # type: ignore[method-assign]
        try:
            settings = with_options(pipe.defaults, SMALL | options, pipe.sizes)
            prompts, images = list(texts), [given] * len(texts) if given else ()
            events = list(pipe.stream(prompts, range(len(prompts)), settings, task=task, images=images))
        finally:
            del pipe.protocol.program
        found = {prompts[e.request]: e.trajectory for e in events if isinstance(e, Finished)}
        assert found.keys() == texts.keys(), events[-1]
        return scripted, found


@pytest.fixture(scope="module")
def runs(folder: Path) -> Runs:
    return Runs(folder)


def umm(turn: int, score: int, edit: str | None) -> str:
    return Verdict(score, "seen", edit).to_text(turn)


S, RS = "<system>", "<refinement_system>"
LOOPS: dict[str, tuple[Sequence[str], list[list[str]], list[tuple[list[str], list[str], list[str] | None]], str]] = {
    # protocol: (texts that are written, what each is written on, what each image is drawn on, why it ends)
    "irg": (
        ("t", "r", "q"),
        [[S, "p"], [S, "p", "t", "vae0", "vit0"], [S, "p", "t", "vae0", "vit0", "r", "vae1", "vit1"]],
        [
            ([S, "p", "t"], [S], None),
            ([S, "p", "t", "vae0", "vit0", "r"], [S, "p", "t", "vae0", "vit0"], [S, "p", "t", "r"]),
            (
                [S, "p", "t", "vae0", "vit0", "r", "vae1", "vit1", "q"],
                [S, "p", "t", "vae0", "vit0", "r", "vae1", "vit1"],
                [S, "p", "t", "r", "q"],
            ),
        ],
        "",
    ),
    "rvr": (
        (),
        [],
        [(["p"], [], None), ([S, "vit0", "P[p]"], [S, "vit0"], [S, "P[p]"])],
        "",
    ),
    "unireason": (
        ("t",),
        [["<think>", "p"]],
        [(["<think>", "p", "t"], [], None), (["vae0", "vit0", "t"], ["vae0", "vit0"], ["T[t|p]"])],
        "",
    ),
    "unireason-suggest": (
        ("t", "s"),
        [["<think>", "p"], [RS, "p", "<request>", "vit0"]],
        [
            (["<think>", "p", "t"], [], None),
            (
                [RS, "p", "<request>", "vae0", "vit0", "s"],
                [RS, "p", "<request>", "vae0", "vit0"],
                ["<think>", "p", "S[s|p]"],
            ),
        ],
        "",
    ),
    "unicot": (
        (" t\n", "e", "s", "w", "e", "STOP1", "e", "STOP2", "e", "STOP4"),
        [
            [S, "p", "p"],
            [S, "p", "t", "vit0"],
            [S, "p", "t", "vit0", "e"],
            [S, "p", "t", "vit0", "e", "<rewriting_request>"],
            *[[S, "p", "t", "vit1"], [S, "p", "t", "vit1", "e"]] * 3,
        ],
        [
            ([S, "p", " t\n"], [], None),
            ([S, "p", "t", "vae0", "vit0", "w"], [S, "p", "t", "vae0", "vit0"], [S, "p", "t", "w"]),
        ],
        "done",
    ),
    "unicot-v0.2": (
        ("a <think> b\nc </think>\n", "e", "<sugg>x</sugg><sugg> y</sugg> z", "e", "well, STOP3"),
        [
            [S, "p"],
            [S, "p", "a <think> b\nc </think>", "vit0"],
            [S, "p", "a <think> b\nc </think>", "vit0", "e"],
            [S, "p", "a <think> b\nc </think>", "vit1"],
            [S, "p", "a <think> b\nc </think>", "vit1", "e"],
        ],
        [(["b c"], [], None), (["vae0", "vit0", "y"], ["vae0", "vit0"], ["y"])],
        "done",
    ),
    "thinkmorph": (
        ("a <image_start>", "b <image_start>", "answer"),
        [
            [S, "p"],
            [S, "p", "a <image_start>", "vae0", "vit0"],
            [S, "p", "a <image_start>", "vae0", "vit0", "b <image_start>", "vae1", "vit1"],
        ],
        [
            ([S, "p", "a <image_start>"], [S], [S, "p"]),
            ([S, "p", "a <image_start>", "vae0", "vit0", "b <image_start>"], [S], [S, "p"]),
        ],
        "answered",
    ),
    "r3": (
        ("t", "hm</think> x ", "hm</think> No further edit needed"),
        [["<think>", "p"], ["<answer>", "vit0", "Q[p]"], ["<answer>", "vit1", "Q[p]"]],
        [(["<think>", "p", "t"], ["<think>"], None), (["vae0", "vit0", "x"], ["vae0", "vit0"], ["x"])],
        "done",
    ),
    "umm-reflection": (
        (umm(0, 3, "x"), umm(1, 5, "y"), umm(2, 10, None)),
        [
            [S, "p", "vae0", "vit0"],
            [S, "p", "vae0", "vit0", umm(0, 3, "x"), "vae1", "vit1"],
            [S, "p", "vae0", "vit0", umm(0, 3, "x"), "vae1", "vit1", umm(1, 5, "y"), "vae2", "vit2"],
        ],
        [
            (["p"], [], None),
            (["vae0", "vit0", "x"], ["vae0", "vit0"], ["x"]),
            (["vae1", "vit1", "y"], ["vae1", "vit1"], ["y"]),
        ],
        "done",
    ),
}
ROUNDS = {"irg": {"rounds": 2}}


def branches(drawings: Sequence[Drawing]) -> list[tuple[list[str], list[str], list[str] | None]]:
    return [(one.main, one.text_free, one.image_free) for one in drawings]


@pytest.mark.parametrize("protocol", LOOPS)
def test_the_whole_loop(runs: Runs, protocol: str, tmp_path: Path) -> None:
    texts, writes, draws, stop = LOOPS[protocol]
    scripted, found = runs(protocol, {"p": texts}, **ROUNDS.get(protocol, {}))
    assert scripted.writes["p"] == writes
    assert branches(scripted.draws["p"]) == draws
    trajectory = found["p"]
    assert (trajectory.protocol, trajectory.stop_reason, trajectory.stopped) == (protocol, stop, bool(stop))
    images = [turn.image for turn in trajectory.turns if turn.image is not None]
    assert len(images) == len(draws) and trajectory.image is images[-1]
    assert len({image.tobytes() for image in images}) == len(images)
    read = Trajectory.load(trajectory.save(tmp_path / "result"))
    assert read.to_dict() == trajectory.to_dict() and "<html" in (tmp_path / "result" / "report.html").read_text()


@pytest.mark.parametrize("protocol", LOOPS)
def test_several_requests_together_are_as_each_alone(runs: Runs, protocol: str) -> None:
    texts, *_ = LOOPS[protocol]
    options = ROUNDS.get(protocol, {})
    scripted, together = runs(protocol, {"p": texts, "another": texts, "third": texts}, **options)
    alone_scripted, alone = runs(protocol, {"p": texts}, critic="self", **options)
    assert branches(scripted.draws["p"]) == branches(alone_scripted.draws["p"])
    assert [turn.details for turn in together["p"].turns] == [turn.details for turn in alone["p"].turns]
    pairs = zip(together["p"].turns, alone["p"].turns, strict=True)
    for one, two in ((a.image, b.image) for a, b in pairs if a.image is not None):
        assert two is not None and np.abs(np.asarray(one, float) - np.asarray(two, float)).mean() < 0.5
    assert together["another"].turns[0].image != together["p"].turns[0].image


IMPROVED: dict[str, tuple[Sequence[str], list[list[str]], tuple[list[str], list[str], list[str] | None]]] = {
    "irg": (
        ("r",),
        [[S, "p", "vae0", "vit0"]],
        ([S, "p", "vae0", "vit0", "r"], [S, "p", "vae0", "vit0"], [S, "p", "r"]),
    ),
    "rvr": ((), [], ([S, "vit0", "P[p]"], [S, "vit0"], [S, "P[p]"])),
    "unireason": (("t",), [["<think>", "p"]], (["vae0", "vit0", "t"], ["vae0", "vit0"], ["T[t|p]"])),
    "unireason-suggest": (
        ("s",),
        [[RS, "p", "<request>", "vit0"]],
        (
            [RS, "p", "<request>", "vae0", "vit0", "s"],
            [RS, "p", "<request>", "vae0", "vit0"],
            ["<think>", "p", "S[s|p]"],
        ),
    ),
    "unicot": (
        ("e", "s", "w"),
        [[S, "p", "vit0"], [S, "p", "vit0", "e"], [S, "p", "vit0", "e", "<rewriting_request>"]],
        ([S, "p", "vae0", "vit0", "w"], [S, "p", "vae0", "vit0"], [S, "p", "w"]),
    ),
    "unicot-v0.2": (
        ("e", "<sugg>y</sugg>"),
        [[S, "p", "vit0"], [S, "p", "vit0", "e"]],
        (["vae0", "vit0", "y"], ["vae0", "vit0"], ["y"]),
    ),
    "r3": (("hm</think>x",), [["<answer>", "vit0", "Q[p]"]], (["vae0", "vit0", "x"], ["vae0", "vit0"], ["x"])),
    "umm-reflection": (
        (umm(0, 3, "x"),),
        [[S, "p", "vae0", "vit0"]],
        (["vae0", "vit0", "x"], ["vae0", "vit0"], ["x"]),
    ),
}


@pytest.mark.parametrize("protocol", IMPROVED)
def test_a_given_image_is_improved(runs: Runs, protocol: str, tmp_path: Path) -> None:
    texts, writes, drawn = IMPROVED[protocol]
    scripted, found = runs(protocol, {"p": texts}, "improve", [RED], rounds=1)
    assert scripted.writes["p"] == writes and branches(scripted.draws["p"]) == [drawn]
    given, improved = found["p"].turns
    assert given.given and given.image is not None and given.image.tobytes() == RED.tobytes()
    assert improved.image is not None and not improved.given and found["p"].stop_reason == ""
    assert Trajectory.load(found["p"].save(tmp_path / "result")).to_dict() == found["p"].to_dict()


@pytest.mark.parametrize("protocol", sorted({*LOOPS, "bagel"}))
def test_a_first_image_at_once(runs: Runs, protocol: str) -> None:
    scripted, found = runs(protocol, {"p": ()}, mode="direct")
    (drawing,) = scripted.draws["p"]
    assert (drawing.main, drawing.text_free) == (["p"], [])
    assert [turn.thinking for turn in found["p"].turns] == [None] and not found["p"].stopped


THINKING = {
    "irg": ([S, "p", "t"], [S]),
    "bagel": (["<think>", "p", "t"], ["<think>"]),
    "r3": (["<think>", "p", "t"], ["<think>"]),
    "thinkmorph": ([S, "p", "t"], [S]),
    "unicot": ([S, "p", "t"], []),
    "unicot-v0.2": (["t"], []),
    "unireason": (["<think>", "p", "t"], []),
}


@pytest.mark.parametrize("protocol", THINKING)
def test_a_first_image_with_thinking(runs: Runs, protocol: str) -> None:
    scripted, _ = runs(protocol, {"p": ("t",)}, mode="think")
    (drawing,) = scripted.draws["p"]
    assert (drawing.main, drawing.text_free) == THINKING[protocol]


@pytest.mark.parametrize("protocol", sorted({*LOOPS} - set(THINKING) - {"unireason-suggest"}))
def test_who_does_not_think(runs: Runs, protocol: str) -> None:
    with pytest.raises(ValueError, match="has no mode 'think'; it has direct, irg"):
        runs(protocol, {"p": ("t",)}, mode="think")


def test_bagel_edits_and_answers(runs: Runs) -> None:
    scripted, _ = runs("bagel", {"p": ()}, "edit", [RED], mode="direct")
    assert branches(scripted.draws["p"]) == [(["vae0", "vit0", "p"], ["vae0", "vit0"], ["p"])]
    scripted, _ = runs("bagel", {"p": ("t",)}, "edit", [RED], mode="think")
    main = ["<think>", "vae0", "vit0", "p", "t"]
    assert branches(scripted.draws["p"]) == [(main, ["<think>", "vae0", "vit0"], ["<think>", "p"])]
    scripted, found = runs("bagel", {"p": ("a",)}, "ask", [RED], mode="direct")
    assert scripted.writes["p"] == [["vit0", "p"]] and found["p"].answer == "a"
    scripted, _ = runs("bagel", {"p": ("a",)}, "ask", [RED], mode="think")
    assert scripted.writes["p"] == [["<answer>", "vit0", "p"]]


# ---- where requests end


def test_unicot_asks_again_before_it_believes_that_all_is_good(runs: Runs) -> None:
    texts = ("t", "e", "STOP3", "f", "s", "w")
    scripted, found = runs("unicot", {"p": texts}, rounds=1)
    assert len(scripted.draws["p"]) == 2 and found["p"].stop_reason == ""
    assert found["p"].turns[1].details == {"evaluation": "f", "suggestion": "s"} and found["p"].turns[1].thinking == "w"


def test_umm_draws_three_edits_at_most(runs: Runs) -> None:
    scripted, found = runs("umm-reflection", {"p": [umm(turn, 4, f"edit {turn}") for turn in range(3)]})
    assert len(scripted.draws["p"]) == 4 and found["p"].stop_reason == "" and not found["p"].stopped
    assert [turn.details for turn in found["p"].turns[1:]] == [{"score": 4, "edit": f"edit {n}"} for n in range(3)]
    first, *edits = [drawing.op for drawing in scripted.draws["p"]]
    assert first.rounded and first.settings.sde_noise_level == 0.8 and first.settings.cfg_text_scale == 4.0
    assert all(op.settings.cfg_text_scale == 3.0 and op.settings.sde_noise_level == 0.8 for op in edits)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (umm(0, 3, "x").replace("[ACTION] edit", "[ACTION] wait"), "malformed: [ACTION] is neither edit nor done"),
        (umm(0, 3, "x").removesuffix("</think>\n[EDIT] x"), "malformed: not one pair of think tags from the start on"),
        (umm(0, 3, "x").replace("seen", "<refused_thinking_1>"), "malformed: [THINKING] without a text"),
    ],
)
def test_a_malformed_answer_keeps_the_image(runs: Runs, answer: str, why: str) -> None:
    scripted, found = runs("umm-reflection", {"p": (answer,)})
    assert len(scripted.draws["p"]) == 1
    assert (found["p"].stopped, found["p"].stop_reason) == (True, why)
    assert found["p"].turns[1].thinking == answer and found["p"].image is found["p"].turns[0].image


def test_a_placeholder_in_the_place_of_an_edit_is_done(runs: Runs) -> None:
    _, found = runs("umm-reflection", {"p": (umm(0, 3, "<Empty_Edit_2>"),)})
    assert found["p"].stop_reason == "done" and found["p"].turns[1].details == {"score": 3, "edit": None}


def test_r3_without_the_end_of_a_thinking_is_done(runs: Runs) -> None:
    _, found = runs("r3", {"p": ("t", "make it red")})
    assert found["p"].stop_reason == "done" and len(found["p"].turns) == 2


@pytest.mark.parametrize(
    ("protocol", "options", "told"),
    [
        ("rvr", {"rounds": 2}, "protocol 'rvr' has at most 1 rounds, got 2"),
        ("unireason", {"rounds": 2}, "protocol 'unireason' has at most 1 rounds, got 2"),
        ("umm-reflection", {"size": "64x32"}, "protocol 'umm-reflection' draws squares only, got 64x32"),
        ("bagel", {"mode": "irg"}, "protocol 'bagel' does not reflect by itself; its loop needs a critic"),
        ("r3", {"reflection_context": "prompt"}, "reflection_context has no meaning in protocol 'r3'"),
    ],
)
def test_what_makes_no_sense(runs: Runs, protocol: str, options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        runs(protocol, {"p": ()}, **options)


# ---- ThinkMorph


def test_an_answer_without_an_image(runs: Runs, tmp_path: Path) -> None:
    pipe = runs.pipe("thinkmorph")
    _, found = runs("thinkmorph", {"p": ("forty-two",)})
    trajectory = found["p"]
    assert trajectory.image is None and trajectory.initial_image is None and trajectory.stop_reason == "answered"
    read = Trajectory.load(trajectory.save(tmp_path / "result"))
    assert read.to_dict() == trajectory.to_dict() and read.thinking == "forty-two"
    assert sorted(path.name for path in (tmp_path / "result").iterdir()) == ["report.html", "trajectory.json"]
    assert "forty-two" in (tmp_path / "result" / "report.html").read_text()
    noise = pipe("p", seed=0, **(SMALL | {"max_think_tokens": 4}))  # a random model asks for no image
    assert noise.image is None and noise.trajectory.stopped


def test_it_draws_three_images_at_most(runs: Runs) -> None:
    scripted, found = runs("thinkmorph", {"p": ["<image_start>"] * 3})
    assert len(scripted.draws["p"]) == 3 and found["p"].stop_reason == "" and found["p"].image is not None


def test_a_question_about_an_image(runs: Runs) -> None:
    scripted, found = runs("thinkmorph", {"p": ("a <image_start>", "answer")}, "ask", [RED], mode="direct")
    given = [S, "vae0", "vit0", "p"]
    assert scripted.writes["p"] == [given, [*given, "a <image_start>", "vae1", "vit1"]]
    drawn = ([*given, "a <image_start>"], [S, "vae0", "vit0"], [S, "p"])
    assert branches(scripted.draws["p"]) == [drawn] and found["p"].answer == "answer"
    with pytest.raises(ValueError, match="protocol 'thinkmorph' can't improve; it can generate, edit, ask"):
        runs("thinkmorph", {"p": ()}, "improve", [RED])


# ---- sizes


@pytest.mark.parametrize(("protocol", "texts"), [("unireason", ("t",)), ("unireason-suggest", ("t", "s"))])
def test_black_borders_are_cut_and_the_size_follows(runs: Runs, protocol: str, texts: tuple[str, ...]) -> None:
    bordered = Image.new("RGB", (64, 64))
    bordered.paste((9, 8, 7), (0, 20, 64, 50))
    scripted, found = runs(protocol, {"p": texts}, replaced={0: bordered}, size="64")
    assert set(scripted.looked_at) == {(64, 30)}
    assert [(one.op.width, one.op.height) for one in scripted.draws["p"]] == [(64, 64), (64, 32)]
    assert found["p"].image is not None and found["p"].image.size == (64, 32)


RULES = {
    "umm-reflection": ((512, 256, 8), (490, 112, 7)),
    "rvr": ((1024, 512, 16), (980, 224, 14)),
    "unireason": ((1024, 512, 16), (980, 378, 14)),
    "unicot": ((1024, 512, 16), (980, 378, 14)),
    "unicot-v0.2": ((1024, 512, 16), (980, 378, 14)),
    "thinkmorph": ((1024, 512, 16), (980, 224, 14)),
    "r3": ((512, 256, 16), (504, 252, 14)),
}


@pytest.mark.parametrize("protocol", RULES)
def test_rules_for_models_that_state_none(tiny_loaded: LoadedModel, protocol: str) -> None:
    vae, vit = (ResizeRule(*rule) for rule in RULES[protocol])
    states_none = replace(tiny_loaded.config, vae_resize=Protocol.vae_resize, vit_resize=Protocol.vit_resize)
    options = find(protocol).job_options(states_none)
    assert (options["vae_resize"], options["vit_resize"]) == (vae, vit)
    assert options["posterior"] == ("mean" if protocol == "r3" else "sample")
    assert options["rounded"] is (protocol == "umm-reflection")
    assert find(protocol).job_options(tiny_loaded.config)["vae_resize"] == tiny_loaded.config.vae_resize
