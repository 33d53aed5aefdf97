"""What is taken from a teacher's answer, and what is not."""

import pytest

from irg.curation.instructions import read_thinking


def test_thinking_is_taken_with_and_without_tags() -> None:
    assert read_thinking("a red cup") == read_thinking("<think> a red cup </think>") == "<think> a red cup </think>"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("I'm sorry, but I can't help with that.", "it is a refusal"),
        ("<think></think>", "it is empty"),
        ("The picture shows a cup.", "already there"),
        ("word " * 2000, "10000 characters|9999 characters"),
    ],
)
def test_what_is_no_thinking_is_asked_for_again(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        read_thinking(text)
