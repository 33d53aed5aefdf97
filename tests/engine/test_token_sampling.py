"""Which tokens can come next, and how often they do."""

import math

import pytest
import torch

from irg.engine.ops import Write
from irg.engine.token_sampling import allowed_next, restrict, sample

INF = math.inf


@pytest.mark.parametrize(
    ("written", "allowed"),
    [((), [1, 2, 3]), ((1,), [0, 8]), ((1, 0), [8]), ((2,), [8]), ((1, 8), None), ((1, 0, 8), None), ((3,), None)],
)
def test_what_choices_allow(written: tuple[int, ...], allowed: list[int] | None) -> None:
    """Choices 1 8, 1 0 8, 2 8 and 3; a complete one leaves what follows free."""
    choices = ((1, 8), (1, 0, 8), (2, 8), (3,))
    assert allowed_next(choices, written) == allowed


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({}, [0, 1, 2, 3]),
        ({"top_k": 2}, [1, 2]),
        ({"top_p": 0.5}, [2]),  # probabilities 0.1, 0.3, 0.55, 0.05: the first reaches 0.5
        ({"top_p": 0.56}, [1, 2]),
        ({"top_p": 0.86}, [0, 1, 2]),
        ({"top_k": 2, "top_p": 0.7}, [1, 2]),  # 0.55 / 0.85 is less than 0.7
        ({"top_k": 2, "top_p": 0.64}, [2]),  # and more than 0.64
        ({"allowed": [0, 3]}, [0, 3]),
        ({"allowed": [0, 3], "top_k": 1}, [0]),
    ],
)
def test_what_is_left(options: dict, left: list[int]) -> None:
    logits = torch.tensor([0.1, 0.3, 0.55, 0.05]).log()
    restricted = restrict(logits, 1.0, **options)
    assert [i for i in range(4) if restricted[i] > -INF] == left
    assert torch.equal(restricted[left], logits[left])


def test_top_p_is_of_the_probabilities_at_the_temperature() -> None:
    """Squared probabilities 0.01, 0.09, 0.3025, 0.0025 are 2.5, 22.2, 74.7 and 0.6 %."""
    logits = torch.tensor([0.1, 0.3, 0.55, 0.05]).log()
    assert (restrict(logits, 0.5, top_p=0.74) > -INF).tolist() == [False, False, True, False]
    assert (restrict(logits, 1.0, top_p=0.74) > -INF).tolist() == [False, True, True, False]


def test_how_often_a_token_is_drawn() -> None:
    """10,000 draws: three standard errors are at most 1.5 %."""
    logits = restrict(torch.tensor([0.1, 0.3, 0.55, 0.05]).log(), 1.0, allowed=[0, 1])
    generator = torch.Generator().manual_seed(0)
    drawn = [sample(logits[None], [1.0], [generator])[0] for _ in range(10_000)]
    assert set(drawn) == {0, 1}
    assert drawn.count(1) / 10_000 == pytest.approx(0.75, abs=0.015)


def test_greedy_takes_the_likeliest_allowed() -> None:
    logits = restrict(torch.tensor([0.1, 0.3, 0.55, 0.05]).log(), 0.0, allowed=[0, 3])
    assert sample(logits[None], [0.0], [torch.Generator()]) == [0]


@pytest.mark.parametrize(("name", "value"), [("top_k", -1), ("top_p", 0.0), ("top_p", 1.5), ("top_p", float("nan"))])
def test_settings_out_of_range(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        Write(5, **{name: value})
