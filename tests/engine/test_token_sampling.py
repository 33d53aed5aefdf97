"""Which tokens can come next, and how often they do."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from irg.engine.decode import TextDecoder
from irg.engine.engine import Engine
from irg.engine.ops import Program, Say, Write
from irg.engine.request import Request
from irg.engine.runner import Runner
from irg.engine.token_sampling import Position, allowed_next, choose
from irg.model.weights.checkpoint import LoadedModel
from irg.model.weights.tokenizer import TextTokenizer

INF = math.inf


@pytest.mark.parametrize(
    ("written", "allowed"),
    [((), [1, 2, 3]), ((1,), [0, 8]), ((1, 0), [8]), ((2,), [8]), ((1, 8), None), ((1, 0, 8), None), ((3,), None)],
)
def test_what_choices_allow(written: tuple[int, ...], allowed: list[int] | None) -> None:
    """Choices 1 8, 1 0 8, 2 8 and 3; a complete one leaves what follows free."""
    choices = ((1, 8), (1, 0, 8), (2, 8), (3,))
    assert allowed_next(choices, written) == allowed


PROBABILITIES = (0.1, 0.3, 0.55, 0.05)


def drawn(position: Position, draws: int) -> list[int]:
    """The tokens for evenly spaced random numbers, all at once."""
    positions = [replace(position, uniform=(i + 0.5) / draws) for i in range(draws)]
    return choose(torch.tensor(PROBABILITIES).log().expand(draws, 4), positions)[0].tolist()


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({}, [0, 1, 2, 3]),
        ({"top_k": 2}, [1, 2]),
        ({"top_p": 0.5}, [2]),  # the first reaches 0.5
        ({"top_p": 0.56}, [1, 2]),
        ({"top_p": 0.86}, [0, 1, 2]),
        ({"top_k": 2, "top_p": 0.7}, [1, 2]),  # 0.55 / 0.85 is less than 0.7
        ({"top_k": 2, "top_p": 0.64}, [2]),  # and more than 0.64
        ({"allowed": [0, 3]}, [0, 3]),
        ({"allowed": [0, 3], "top_k": 1}, [0]),
    ],
)
def test_what_can_be_chosen_and_how_often(options: dict, left: list[int]) -> None:
    """As often as the probabilities of what is left say, to the draw."""
    mass = sum(PROBABILITIES[i] for i in left)
    tokens = drawn(Position(1.0, **options), 1000)
    assert [tokens.count(i) for i in range(4)] == pytest.approx(
        [1000 * PROBABILITIES[i] / mass if i in left else 0 for i in range(4)], abs=1
    )


def test_top_p_is_of_the_probabilities_at_the_temperature() -> None:
    """Squared probabilities 0.01, 0.09, 0.3025, 0.0025 are 2.5, 22.2, 74.7 and 0.6 %."""
    assert set(drawn(Position(0.5, top_p=0.74), 100)) == {2}
    assert set(drawn(Position(1.0, top_p=0.74), 100)) == {1, 2}


def test_greedy_takes_the_likeliest_allowed() -> None:
    assert set(drawn(Position(0.0), 3)) == {2} and set(drawn(Position(0.0, allowed=[0, 3]), 3)) == {0}


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_the_ends_of_the_random_numbers(uniform: float) -> None:
    """Tokens of probability 0 at either end are not drawn."""
    logits = torch.full((1, 1000), -INF)
    logits[0, 3:7] = 0.0
    assert choose(logits, [Position(1.0, uniform)])[0].item() == (3 if uniform == 0 else 6)


def test_positions_of_different_rules_are_chosen_together() -> None:
    rules = [Position(), Position(1.0, 0.99), Position(1.0, 0.0, top_k=1), Position(1.0, 0.0, allowed=[3]), Position()]
    logits = torch.tensor(PROBABILITIES).log().expand(5, 4)
    chosen, logprobs = choose(logits, [*rules[:4], Position(forced=1)], logprobs=True)
    assert chosen.tolist() == [2, 3, 2, 3, 2]
    assert logprobs is not None
    assert logprobs.exp().tolist() == pytest.approx([0.55, 0.05, 0.55, 0.05, 0.3])


def test_a_turn_waits_for_the_device_once(
    tiny_loaded: LoadedModel, tiny_tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is drafted, sampled and reported: one reading of values a turn, and no operation of an unknown shape."""
    waits: list[str] = []

    class Waiting(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
                waits.append(str(func))
            return func(*args, **(kwargs or {}))

    def program() -> Program:
        yield Say("red red")
        return (yield Write(9, 0.7, top_k=50, top_p=0.9, prefix="a", choices=("bcd", "bce"), logprobs=True))

    engine = Engine(Runner(tiny_loaded.model, tiny_loaded.autoencoder), tiny_tokenizer, ("abcd",))
    step, tolist = TextDecoder.step, torch.Tensor.tolist
    turns = []

    def counted(self: TextDecoder, requests: Sequence[Request]) -> None:
        waits.clear()
        with monkeypatch.context() as patch, Waiting():
            patch.setattr(torch.Tensor, "tolist", lambda tensor: waits.append("tolist") or tolist(tensor))
            step(self, requests)
        turns.append(list(waits))

    monkeypatch.setattr(TextDecoder, "step", counted)
    first, second = engine.run([(program(), 1), (program(), 2)])
    assert turns == [["tolist"]] * len(turns) and len(turns) > 2
    assert {first.text[:4], second.text[:4]} <= {"abcd", "abce"}
    assert len(first.logprobs) == len(first.ids) - 1 + first.complete


@pytest.mark.parametrize(("name", "value"), [("top_k", -1), ("top_p", 0.0), ("top_p", 1.5), ("top_p", float("nan"))])
def test_settings_out_of_range(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        Write(5, **{name: value})
