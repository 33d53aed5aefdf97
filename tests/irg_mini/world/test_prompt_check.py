"""Words that irg-mini does not know are named: 40 that are on no list, and no known one, in whatever words."""

import numpy as np
import pytest

from irg_mini import world
from irg_mini.notes import unknown_words
from irg_mini.world.prompt_check import unknown_in
from irg_mini.world.spelling import split_prompt

KNOWN = world.find_vocabulary("geneval")
WORDS = split_prompt(
    "cabin lighthouse windmill cactus dragon castle tractor lobster violin wizard submarine helicopter tent drum "
    "pumpkin waterfall statue ladder hammer compass telescope snowman mermaid scarecrow canoe anvil chandelier harp "
    "jellyfish octopus penguin peacock walrus mushroom sunflower fountain volcano bridge rocket pyramid"
)


@pytest.mark.parametrize(
    "form", ["a photo of a {}", "a {} left of a red bus", "three green {}s on the grass", "oil painting: {}, at dawn"]
)
def test_of_forty_words_nearly_all_are_named(form: str) -> None:
    named = [any(found in (word, f"{word}s") for found in unknown_in(form.format(word), KNOWN)) for word in WORDS]
    assert len(WORDS) == 40 and sum(named) >= 39  # a bridge is taken for a misspelt fridge


@pytest.mark.parametrize("style", world.STYLES)
def test_known_prompts_have_no_unknown_words(style: str) -> None:
    rng = np.random.default_rng(2711)
    requests = [world.sample_request(rng, vocab=KNOWN, background=0.2) for _ in range(200)]
    assert [prompt for one in requests if unknown_in(prompt := world.caption(one, rng, style), KNOWN)] == []


def test_what_is_said() -> None:
    assert unknown_in("a photo of an ox and a cabin", KNOWN) == {"ox": "cow", "cabin": None}
    assert unknown_in("an automobile next to a sofa", KNOWN) == {}
    assert list(unknown_in("a cat sleeping peacefully on a couch", KNOWN)) == ["sleeping", "peacefully"]
    assert unknown_words("a red apple left of a blue bus") == []
    (line,) = unknown_words("a photo of an ox and a cabin")
    assert line.startswith("irg-mini does not know: ox (nearest: cow), cabin.")
    (line,) = unknown_words(" ".join(WORDS[:12]))
    assert f"{WORDS[7]} and 4 more." in line
