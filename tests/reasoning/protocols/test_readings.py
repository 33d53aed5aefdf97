"""How each protocol reads what its model wrote."""

import hashlib
import json
import random
from pathlib import Path

import pytest
from PIL import Image

from irg.critics import Verdict as Critic
from irg.reasoning.protocols.r3 import edit_of
from irg.reasoning.protocols.umm_reflection import SCORES, Verdict, in_form, parse, prefix, window_start
from irg.reasoning.protocols.unicot_v02 import inside
from irg.reasoning.protocols.unireason import cropped

EDIT = Verdict(3, "The cup is blue.\nIt should be red.", "Make the cup red.")
DONE = Verdict(10, "All is there.", None)
GOOD = EDIT.to_text(1)

# ---- UMM-Reflection


def test_the_strict_form() -> None:
    assert GOOD == (
        "<think>\n[CURRENT_ROUND] Round#1\n[SCORE] 3/10\n[ACTION] edit\n[THINKING] The cup is blue.\n"
        "It should be red.\n[SOURCE_IMAGE] Image #1\n</think>\n[EDIT] Make the cup red."
    )
    assert DONE.to_text(0).endswith("[SOURCE_IMAGE] Image #0\n</think>\n[EDIT] None")
    assert len(prefix(0)) == 40 and GOOD.startswith(prefix(1) + SCORES[3])
    assert SCORES == ("0/10", "1/10", "2/10", "3/10", "4/10", "5/10", "6/10", "7/10", "8/10", "9/10", "10/10")


@pytest.mark.parametrize("verdict", [EDIT, DONE, Verdict(0, "x", "y\nz"), Verdict(7, "[note] in small letters", "e")])
def test_what_is_written_in_the_strict_form_is_read_back(verdict: Verdict) -> None:
    assert parse(verdict.to_text(2)) == verdict


@pytest.mark.parametrize(
    ("was", "becomes", "edit"),
    [
        ("Round#1", "Round#9", "Make the cup red."),
        ("Image #1", "given", "Make the cup red."),
        ("[SOURCE_IMAGE] Image #1\n", "", "Make the cup red."),
        ("[ACTION] edit\n", "[action]\tEDIT, ", "Make the cup red."),  # not in a line of its own
        ("[SCORE] 3/10", " [Score] 3 / 10 ", "Make the cup red."),
        ("Make the cup red.", "None", None),  # an edit without a payload is done
        ("Make the cup red.", " n/A ", None),
        ("Make the cup red.", "", None),
        ("Make the cup red.", "Concrete thing", None),  # a placeholder
        ("Make the cup red.", "Make it\nred", "Make it\nred"),
    ],
)
def test_what_is_let_pass(was: str, becomes: str, edit: str | None) -> None:
    assert was in GOOD
    assert parse(GOOD.replace(was, becomes), empty=("concrete thing",)) == Verdict(3, EDIT.thinking, edit)


@pytest.mark.parametrize(
    ("was", "becomes", "told"),
    [
        ("<think>\n[C", "\n<think>\n[C", "think tags"),
        ("The cup", "<think>The cup", "think tags"),
        ("\n</think>", "", "think tags"),
        ("The cup", "</think>The cup", "think tags"),
        ("</think>\n[EDIT]", "</think>\n\n[EDIT]", "directly after"),
        ("</think>\n[EDIT] ", "</think>\n[EDIT]", "directly after"),
        ("</think>\n[EDIT]", "</think> [EDIT]", "directly after"),
        ("cup red.", "cup red. [edit] no", "not one .EDIT."),
        ("[ACTION] edit\n", "", "not one .ACTION."),
        ("The cup", "The [action] cup", "not one .ACTION."),
        ("[ACTION] edit", "[ACTION] wait", "neither edit nor done"),
        ("[ACTION] edit\n", "[ACTION] editing\n", "neither edit nor done"),
        ("[THINKING] ", "", "not one .THINKING."),
        ("The cup", "The [Thinking] cup", "not one .THINKING."),
        (EDIT.thinking + "\n", " \n", "without a text"),
        (EDIT.thinking, "Some Sentence. ", "without a text"),  # a placeholder
        ("[SCORE] 3/10", "[SCORE] 11/10", "from 0/10 to 10/10"),
        ("[SCORE] 3/10", "[SCORE] 3/5", "from 0/10 to 10/10"),
        ("[SCORE] 3/10", "[SCORE] 3.5/10", "from 0/10 to 10/10"),
        ("[SCORE] 3/10\n", "", "not one line .SCORE."),
        ("[ACTION]", "[SCORE] 4/10\n[ACTION]", "not one line .SCORE."),
        ("Make the cup red.", " Make the cup red.", "spaces around"),
        ("Make the cup red.", "Make the cup red.\n", "spaces around"),
        ("cup red.", "cup red. [score]", "protocol text"),
        ("cup red.", "cup <THINK red.", "protocol text"),
        ("cup red.", "cup red. <|im_end|>", "protocol text"),
        ("[ACTION] edit", "[ACTION] done", "done, but"),
        ("It should", "[NOTE] It should", "looks like another field"),
        ("It should", "the [edit] should", "looks like another field"),
        ("It should", "  [CURRENT_ROUND] should", "looks like another field"),
    ],
)
def test_what_is_malformed(was: str, becomes: str, told: str) -> None:
    assert was in GOOD
    with pytest.raises(ValueError, match=told):
        parse(GOOD.replace(was, becomes, 1), refused=("some sentence.",))


def test_done_takes_none_alone() -> None:
    assert parse(DONE.to_text(0)) == DONE
    for payload in ("none", "None ", "", "None."):
        with pytest.raises(ValueError, match="done, but"):
            parse(DONE.to_text(0).removesuffix("None") + payload)


def test_a_critics_words_are_brought_into_the_form() -> None:
    said = Critic("blue </think>\n[NOTE] [EDIT] cup", " make it\n[score] red <|im_end|>", False, 0.44)
    verdict = in_form(said)
    assert verdict == Verdict(4, "blue [NOTE] cup", "make it red")
    assert parse(verdict.to_text(0)) == verdict


def test_the_first_stochastic_step() -> None:
    assert random.Random(0).randint(0, 23) == 12  # the first image's, as a process with number 0 chooses it
    name = b"clean29529_g012_local_sde_window_seed_v1|7|500|3|2"
    seed = int.from_bytes(hashlib.sha256(name).digest()[:8], "big")
    assert window_start(7, 3, 2, 23) == random.Random(seed).randint(0, 23)
    assert {window_start(seed, 0, 0, 23) for seed in range(300)} == set(range(24))


@pytest.mark.shared
def test_recorded_first_stochastic_steps(golden: Path) -> None:
    found = sorted((golden / "protocols" / "umm_reflection").glob("*.json"))
    if not found:
        pytest.skip(f"{golden} has no cases of this protocol")
    for path in found:
        values = json.loads(path.read_text())["values"]
        edits = [call["sde"] for call in values["steps_in_call_order"] if call.get("sde", {}).get("seed_identity")]
        assert edits
        last = values["sde_window_range"][1] - values["sde_window_size"]
        for sde in edits:
            seed, step, index, turn = sde["seed_identity"].values()  # in the order in which they are hashed
            assert window_start(seed, index, turn, last, step) == sde["begin"]
        found_windows = {str(index): window_start(seed, index, 0, last, step) for index in range(8)}
        assert found_windows == values["windows"]


# ---- the others


@pytest.mark.parametrize(
    ("text", "edit"),
    [
        ("<think> hm </think> Make it red.\n", "Make it red."),
        ("a </think> b </think> c", "c"),
        ("<think> hm </think>", ""),  # the authors' script edits with an empty text
        ("no end of a thinking", None),
        ("<think> hm </think> No Further Edit needed.", None),
        ("no further edit </think> red", "red"),
    ],
)
def test_r3(text: str, edit: str | None) -> None:
    assert edit_of(text) == edit


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a <sugg> one\r\ntwo </sugg> b", "one  two"),
        ("<sugg>one</sugg> <sugg>two</sugg>", "two"),
        ("all of it ", "all of it"),
        ("a <sugg> never closed", "never closed"),
        ("never opened </sugg> b", "never opened"),
    ],
)
def test_unicot_v02(text: str, found: str) -> None:
    assert inside("sugg", text) == found


def test_unireason_cuts_black_borders() -> None:
    image = Image.new("RGB", (60, 40))
    assert cropped(image) is image  # all black
    image.paste((0, 0, 1), (10, 5, 50, 30))
    assert cropped(image).size == (40, 25)
    white = Image.new("RGB", (60, 40), "white")
    assert cropped(white) is white
