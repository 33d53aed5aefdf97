"""Other models' protocols: every recorded context, step, latent and image, by our own programs.

Cases are ``protocols/NAME/CASE``: the folder says which protocol, the case's name which of its ways.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from irg.engine.flow import sde_mean_and_std, time_grid
from irg.engine.runner import Runner
from irg.engine.token_sampling import allow, allowed_next
from irg.model.weights.checkpoint import LoadedModel
from irg.reasoning.protocols.r3 import R3
from irg.reasoning.protocols.rvr import RvR
from irg.reasoning.protocols.thinkmorph import ThinkMorph
from irg.reasoning.protocols.umm_reflection import UMMReflection, window_start
from irg.reasoning.protocols.unicot import UniCoT
from irg.reasoning.protocols.unireason import UniReason, UniReasonSuggest

from . import fixture
from .fixture import Case, close, equal
from .replay import Replay, Script, steps
from .runs import check_contexts, check_steps

BRANCHES = {"main": "main", "cfg_text": "text_uncond", "cfg_img": "image_uncond"}


def _controller_answer(name: str, case: Case) -> str:
    """A UMM answer in its strict form: an edit where the case has a payload for it."""
    turn = name.split()[-1]
    edit = f"payload {turn}" if f"payload {turn}" in case.values["ids"] else None
    action, payload = ("done", "None") if edit is None else ("edit", edit)
    return (
        f"<think>\n[CURRENT_ROUND] Round#{turn}\n[SCORE] 5/10\n[ACTION] {action}\n[THINKING] why\n"
        f"[SOURCE_IMAGE] Image #{turn}\n</think>\n[EDIT] {payload}"
    )


def _canonical(text: str) -> str:
    """The case's name of a UMM answer that is put in again."""
    if not text.startswith("<think>"):
        return text
    return f"canonical response {text.partition('Round#')[2].partition(chr(10))[0]}"


_THINK = {"think": "system prompt"}
_UNICOT = {f"stop_phrase_{i}": "all is good" for i in range(1, 5)}
SCRIPTS = {
    "rvr/refine": Script(
        RvR, {"system": "refine system prompt", "prompt_sentence": "user prompt in its sentence"}, task="improve"
    ),
    "unicot/reflect": Script(
        UniCoT,
        {"system": "system prompt", "rewriting_request": "rewriting request"} | _UNICOT,
        text_of=lambda name, case: "all is good" if name.startswith("suggestion 2") else name,
    ),
    "unireason/wise": Script(UniReason, _THINK | {"thought_sentence": "sentence around thought and prompt"}),
    "unireason/corebench": Script(
        UniReasonSuggest,
        _THINK
        | {
            "refinement_system": "refinement system prompt",
            "request": "request for a suggestion",
            "suggestion_sentence": "sentence around suggestion and prompt",
        },
    ),
    "thinkmorph/question": Script(
        ThinkMorph,
        {"system": "system prompt"},
        prompt="question",
        text_of=lambda name, case: name + "<image_start>" * name.startswith("thought"),
    ),
    "r3/reflect": Script(
        R3,
        _THINK | {"answer": "reflection system prompt", "question": "question around the prompt"},
        text_of=lambda name, case: name.replace("reflection", "</think> edit"),
        to_the_end=True,
    ),
    "umm_reflection/reflect": Script(
        UMMReflection, {"system": "system prompt"}, text_of=_controller_answer, said=_canonical
    ),
}


@pytest.fixture(scope="module")
def cases(golden: Path) -> dict[str, Case]:
    """All cases of the folder, by name."""
    folder = golden / "protocols"
    found = sorted(folder.glob("*/*.safetensors"))
    if not found:
        pytest.skip(f"{golden} has no protocols")
    return {path.relative_to(folder).with_suffix("").as_posix(): Case(path.parent, path.stem) for path in found}


def script_of(name: str) -> Script:
    """The script for a case's name, sizes aside."""
    fitting = [known for known in SCRIPTS if name.startswith(known)]
    assert fitting, f"no script for the case {name}"
    return SCRIPTS[max(fitting, key=len)]


def test_contexts_steps_and_images(cases: dict[str, Case], loaded: LoadedModel) -> None:
    for name, case in cases.items():
        replay = Replay(case, script_of(name), Runner(loaded.model, loaded.autoencoder, rows=1, slots=8))
        for call, drawing in replay.run():
            _check_branches(replay, name, call, drawing)
        runner, drawn = replay.watched.runner, [step.image for step in replay.result if step.image is not None]
        calls = steps(case, "draws")
        assert len(drawn) == len(calls) == len(replay.watched.drawings), name
        for call, drawing, latents, image in zip(
            calls, replay.watched.drawings, replay.watched.latents, drawn, strict=True
        ):
            of = call["draws"].replace(" ", "")
            _check_run(case, of, drawing, latents)
            close(runner.decode_latents(image.latents[None]), case[f"{of}.decoded"], f"{name}: {of}.decoded")
            _check_levels(np.asarray(image.image), case, of, replay.job().rounded, name)


def _check_branches(replay: Replay, name: str, call: dict[str, Any], drawing: Any) -> None:
    """Keys, values, lengths and positions of every branch that counts."""
    for branch, attribute in BRANCHES.items():
        what, ours, recorded = f"{name}, {call['draws']}, {branch}", getattr(drawing, attribute), call["contexts"]
        context = recorded[branch]
        if ours is None:
            # no such guidance, or one whose context is the main one's: then it is a larger text scale
            same = context is not None and context["parts"] == recorded["main"]["parts"]
            assert same or call["settings"].get(f"{branch}_scale", 1) <= 1, f"{what}: missing"
            continue
        assert context is not None, f"{what}: not recorded"
        if not context["parts"]:
            equal(ours.length, 0, what)
            continue
        k, v = (replay.case[f"{call['draws'].replace(' ', '')}.{branch}.{kv}"] for kv in "kv")
        at = fixture.Context(k, v, [call["cache_lens"][branch]], [call["target_position"][branch]])
        check_contexts(replay.watched.runner, [ours], at, what)


def _check_run(case: Case, of: str, drawing: Any, latents: list[torch.Tensor]) -> None:
    """Every x and v, stochastic steps by their mean and deviation, and the final latent."""
    noise = case[f"{of}.noise"]
    if f"{of}.sde_mean" not in case:
        check_steps(case, of, noise, drawing.times, latents)
        return
    s, times = drawing.op.settings, drawing.times
    close(torch.tensor(times[:-1]), case[f"{of}.timesteps"], f"{of}.timesteps", atol=1e-7)
    xs = [noise, *latents]
    close(torch.stack(xs[:-1]), case[f"{of}.x"], f"{of}.x")
    close(latents[-1], case[f"{of}.latent"], f"{of}.latent")
    for i, mean in enumerate(case[f"{of}.sde_mean"]):
        n = s.sde_window_start + i
        args = (times[n], times[n + 1], s.sde_noise_level, times[1])
        got, std = sde_mean_and_std(case[f"{of}.x"][n], case[f"{of}.v"][n], *args)
        close(got, mean, f"{of}.sde_mean")
        added = std * (times[n] - times[n + 1]) ** 0.5
        recorded = case[f"{of}.sde_std"][i].item()
        assert min(abs(std - recorded), abs(added - recorded)) < 1e-5, f"{of}.sde_std"


def _check_levels(got: np.ndarray, case: Case, of: str, rounded: bool, name: str) -> None:
    """The image as it is saved; one level off is forgiven where the recorded value lies on an edge."""
    levels = ((case[f"{of}.decoded"][0].double() / 2 + 0.5).clamp(0, 1) * 255).permute(1, 2, 0).numpy()
    levels += 0.5 * rounded
    edge = np.abs(levels - np.round(levels)) < 255 * fixture.ATOL
    off = np.abs(got.astype(int) - case[f"{of}.u8"].numpy().astype(int))
    assert off.max() <= 1 and not (off[~edge] > 0).any(), f"{name}: {int((off > 0).sum())} levels of {of} differ"


def test_scores_are_decoded_among_the_legal_ones(cases: dict[str, Case]) -> None:
    """Which tokens are allowed after what has been written, and the probability of the one that was taken."""
    with_scores = [case for case in cases.values() if "score_trie" in case.values]
    if not with_scores:
        pytest.skip("no case has scores")
    for case in with_scores:
        choices, fields = case.values["score_trie"]["sequences"], 0
        for call in steps(case, "writes"):
            for n, recorded in enumerate(call.get("score_field", [])):
                allowed = allowed_next(choices, call["ids"][:n])
                assert allowed == recorded["allowed"] and call["ids"][n] == recorded["taken"]
                (logits_V,) = allow(case[f"{call['tensor']}.logits"][n][None], [allowed])
                log_prob = (logits_V / call["temperature"]).log_softmax(dim=0)[recorded["taken"]].item()
                assert log_prob == pytest.approx(recorded["log_prob"], abs=1e-5)
                fields += 1
        assert fields


def test_windows_of_stochastic_steps(cases: dict[str, Case]) -> None:
    """Where an edit's stochastic steps begin follows from the run's seed, the prompt's index and the round."""
    with_windows = [case for case in cases.values() if "sde_window_range" in case.values]
    if not with_windows:
        pytest.skip("no case has stochastic steps")
    for case in with_windows:
        checked = 0
        for call in steps(case, "draws"):
            if identity := call.get("sde", {}).get("seed_identity"):
                low, high = case.values["sde_window_range"]
                last = high - low - case.values["sde_window_size"]
                seed, index, turn = (identity[k] for k in ("experiment_seed", "trajectory_index", "round_index"))
                assert window_start(seed, index, turn, last, identity["logical_step"]) == call["sde"]["begin"]
                checked += 1
        assert checked


def test_grids(cases: dict[str, Case]) -> None:
    for name, case in cases.items():
        for call in steps(case, "draws"):
            times = time_grid(call["settings"]["num_timesteps"], call["settings"]["timestep_shift"])
            close(times[:-1], case[f"{call['draws'].replace(' ', '')}.timesteps"], name, atol=1e-7)
