"""The six learning modes, line by line as the paper's table has them."""

import pytest

from irg.learning.modes import IMPROVING, MODES, EncodedImage, EncodedTrajectory, Mode, hide_thinking, write
from irg.sequence import Latents, Part, Patches, Target, Text

SYSTEM, PROMPT, T1, T2, HOW_THINK, HOW_IMPROVE = ((n,) for n in range(6))
I1, I2 = EncodedImage(1, (2, 2), (3, 3)), EncodedImage(2, (2, 4), (3, 5))
WHOLE = EncodedTrajectory(SYSTEM, PROMPT, T1, I1, T2, I2, HOW_THINK, HOW_IMPROVE)
FIRST_TURN = EncodedTrajectory(SYSTEM, PROMPT, T1, I1, how_to_think=HOW_THINK)

NAMES = {SYSTEM: "sys", PROMPT: "prompt", T1: "T1", T2: "T2", HOW_THINK: "how to think", HOW_IMPROVE: "how to improve"}


def spelled(parts: list[Part]) -> str:
    """A sequence in the words of the table; ``*`` marks loss."""
    words = []
    for part in parts:
        match part:
            case Text(ids, loss):
                words.append(NAMES[ids] + "*" * loss)
            case Latents(content=key):
                words.append(f"I{key}(VAE)")
            case Patches(content=key):
                words.append(f"I{key}(ViT)")
            case Target(content=key):
                words.append(f"I{key}*")
    return ", ".join(words)


@pytest.mark.parametrize(
    ("mode", "sequence"),
    [
        ("initial_thinking_understanding", "sys, prompt, I1(VAE), I1(ViT), how to think, T1*"),
        ("initial_thinking_generation", "sys, prompt, T1*"),
        ("initial_full", "sys, prompt, T1*, I1*"),
        (
            "improving_thinking_understanding",
            "sys, prompt, I1(VAE), I1(ViT), I2(VAE), I2(ViT), how to improve, T2*",
        ),
        ("improving_thinking_generation", "sys, prompt, T1, I1(VAE), I1(ViT), T2*"),
        ("improving_full", "sys, prompt, T1, I1(VAE), I1(ViT), T2*, I2*"),
        ("direct", "prompt, I1*"),
        ("unconditional", "sys, I1*"),
    ],
)
def test_the_table(mode: Mode, sequence: str) -> None:
    assert spelled(write(mode, WHOLE)) == sequence


def test_the_thinking_is_hidden_from_some_reflections() -> None:
    """From its share of the improving modes, and from no other; without a share nothing is drawn."""

    def sequence(mode: Mode, chance: float, share: float) -> str:
        return spelled(write(mode, hide_thinking(mode, WHOLE, lambda: chance, share)))

    assert sequence("improving_full", 0.49, 0.5) == "sys, prompt, I1(VAE), I1(ViT), T2*, I2*"
    assert sequence("improving_thinking_generation", 0.0, 0.5) == "sys, prompt, I1(VAE), I1(ViT), T2*"
    assert sequence("improving_full", 0.5, 0.5) == "sys, prompt, T1, I1(VAE), I1(ViT), T2*, I2*"
    assert sequence("initial_full", 0.0, 0.5) == "sys, prompt, T1*, I1*"
    assert hide_thinking("improving_full", WHOLE, lambda: pytest.fail("drawn"), 0.0) is WHOLE


def test_the_table_is_all() -> None:
    assert len(MODES) == 8
    assert IMPROVING == ("improving_thinking_understanding", "improving_thinking_generation", "improving_full")


def test_images_keep_their_own_grids() -> None:
    parts = write("improving_thinking_understanding", WHOLE)
    assert [part.grid for part in parts if not isinstance(part, Text)] == [(2, 2), (3, 3), (2, 4), (3, 5)]  # type: ignore[union-attr]


def test_without_a_system_prompt() -> None:
    bare = EncodedTrajectory((), PROMPT, T1, I1)
    assert spelled(write("initial_full", bare)) == "prompt, T1*, I1*"
    assert spelled(write("unconditional", bare)) == "I1*"


@pytest.mark.parametrize("mode", IMPROVING)
def test_a_first_turn_cannot_be_improved(mode: Mode) -> None:
    with pytest.raises(ValueError, match=rf"{mode} needs a reflection and an improved image"):
        write(mode, FIRST_TURN)


def test_unknown_mode() -> None:
    with pytest.raises(ValueError, match="unknown mode 'full'"):
        write("full", WHOLE)  # type: ignore[arg-type]
