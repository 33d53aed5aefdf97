"""The reflection template's parser: the mini style, larger models' variants, and what is not a reflection."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from irg.results.reflection import Reflection, is_done, sections, without_tags

MINI = (
    "<think> Analysis: the apple at (3,7) is green, not red; one apple is missing. Improvements: recolor the apple at "
    "(3,7) to red. Steps: keep 2 things, fix 1, add 1, remove 0. Final prompt: Scene: meadow. Things: large red apple "
    "at (3,7); large yellow bus at (10,6). </think>"
)
DONE = (
    "<think> Analysis: nothing is wrong. Improvements: none. Steps: keep 4 things, fix 0, add 0, remove 0. "
    "Final prompt: Scene: meadow. Things: large red apple at (3,7). </think>"
)
EXPECTED = Reflection("too dark", "more light", "1. Raise the sun.\n2. Brighten.", "A bright meadow.")


def test_the_mini_style() -> None:
    assert Reflection.parse(MINI) == Reflection(
        "the apple at (3,7) is green, not red; one apple is missing.",
        "recolor the apple at (3,7) to red.",
        "keep 2 things, fix 1, add 1, remove 0.",
        "Scene: meadow. Things: large red apple at (3,7); large yellow bus at (10,6).",
    )
    assert Reflection.parse(Reflection.parse(MINI).to_text()) == Reflection.parse(MINI)


@pytest.mark.parametrize(
    "headings",
    [
        ("Analysis:", "Improvements:", "Steps:", "Final prompt:"),
        ("1. Analysis:", "2. Detailed Improvements:", "3. Step-by-Step Guidance:", "4. Final Comprehensive Prompt:"),
        ("**Analysis:**", "**Required Improvements:**", "**Modification Steps:**", "**Final Prompt:**"),
        ("**Analysis**:", "**Improvements**:", "**Guidance**:", "**Final Prompt**:"),
        ("### Analysis", "### Improvement Requirements", "### Instructions", "### Final Improved Prompt"),
        ("## 1. Analysis", "## 2. Improvements", "## 3. Modification Plan", "## 4. Comprehensive Prompt"),
        ("**1. Image Analysis**", "**2. Areas for Improvement**", "**3. Detailed Steps**", "**4. Final Prompt**"),
        ("- ANALYSIS:", "- IMPROVEMENTS NEEDED:", "- STEP-BY-STEP MODIFICATION GUIDANCE:", "- FINAL PROMPT:"),
        ("Step 1: Analysis:", "Step 2: Improvements:", "Step 3: Plan:", "Step 4: Final prompt for the image:"),
    ],
)
@pytest.mark.parametrize(
    "tags", [("<think>\n", "\n</think>"), ("<think>", ""), ("", "</think> trailing words"), ("", "")]
)
def test_headings_in_many_guises(headings: tuple[str, ...], tags: tuple[str, str]) -> None:
    parts = (EXPECTED.analysis, EXPECTED.improvements, EXPECTED.steps, EXPECTED.final_prompt)
    body = "\n".join(f"{heading}\n{part}\n" for heading, part in zip(headings, parts, strict=True))
    assert Reflection.parse(tags[0] + body + tags[1]) == EXPECTED
    windows = tags[0] + body.replace("\n", "\r\n") + tags[1]
    assert Reflection.parse(windows).final_prompt == EXPECTED.final_prompt


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "'analysis', 'improvements', 'steps', 'final prompt'"),
        ("Analysis: dark. Improvements: light. Final prompt: x", "no section 'steps'"),
        ("Analysis: dark. Improvements: light. Steps: one.", "no section 'final prompt'"),
        ("Analysis: dark. Improvements: Steps: one. Final prompt: x", "no section 'improvements'"),
        ("Final prompt: x. Steps: y. Improvements: z. Analysis: w.", "'improvements', 'steps', 'final prompt'"),
        ("my analysis is that improvements need steps to a final prompt", "'analysis'"),
    ],
)
def test_a_missing_section_is_named(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Reflection.parse(text)


def test_numbers_and_words_inside_a_section_stay() -> None:
    found = sections(
        "Analysis: its analysis of 3. Improvements: steps of a plan, add 2. Steps: 1) go 2) on. Final prompt: y"
    )
    assert found == {
        "analysis": "its analysis of 3.",
        "improvements": "steps of a plan, add 2.",
        "steps": "1) go 2) on.",
        "final prompt": "y",
    }


@pytest.mark.parametrize(
    ("text", "done"),
    [
        (DONE, True),
        (MINI, False),
        ("<think> Analysis: Nothing is wrong. </think>", True),
        ("Analysis: nothing needs to be improved. Improvements: No changes needed.", True),
        ("Analysis: There are no visible flaws.", True),
        ("**Analysis:** No improvements are needed.\n**Improvements:** None", True),
        ("Analysis: nothing is wrong with the sky, but the bus is missing. Improvements: add a bus.", False),
        ("Analysis: nothing is wrong. Improvements: add a red apple at (1,2).", False),
        ("Analysis: no apple is red. Improvements: recolor.", False),
        ("nothing is wrong", False),
        ("", False),
    ],
)
def test_done_only_when_nothing_is_asked_for(text: str, done: bool) -> None:
    assert is_done(text) is done


def test_tags_are_taken_off() -> None:
    assert without_tags("<think> a </think> b") == without_tags("a</think>") == without_tags("<think>a") == "a"


@given(st.text(alphabet=st.sampled_from("aA:.\n *#-1 \t<>/"), max_size=200) | st.text(max_size=200))
def test_any_text_is_survived(text: str) -> None:
    assert set(sections(text)) <= {"analysis", "improvements", "steps", "final prompt"}
    assert is_done(text) in (True, False)


@pytest.mark.parametrize("piece", [" ", "\n", ". ", "**", "# ", "1. ", "improvements ", "analysis of a ", "detailed "])
def test_long_hostile_text_is_read(piece: str) -> None:
    """A pattern that backtracks would not come back from this."""
    assert "analysis" in sections("Analysis: x." + piece * (300_000 // len(piece)))
