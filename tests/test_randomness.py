"""Generators: bare seeds are torch's own; nothing aliases."""

import itertools

import numpy as np
import pytest
import torch

from irg.randomness import generator, numpy_generator


def numbers(*key: int) -> tuple[float, ...]:
    return tuple(torch.rand(8, generator=generator(*key), dtype=torch.float64).tolist())


@pytest.mark.parametrize("seed", [0, 1, 7363, 2**31, 2**32 - 1])
def test_a_small_seed_is_torchs_own(seed: int) -> None:
    ours, theirs = generator(seed), torch.Generator().manual_seed(seed)
    assert torch.equal(ours.get_state(), theirs.get_state())
    assert torch.equal(torch.randn(1000, generator=ours), torch.randn(1000, generator=theirs))


def test_no_two_keys_share_numbers() -> None:
    small = (0, 1, 2**32 - 1, 2**32, 2**32 + 1, 2**63 - 1)
    keys = [(seed,) for seed in small]
    keys += [*itertools.product(small, small), *itertools.product((0, 1), (0, 1), (0, 1))]
    keys += [(0, 1_000_003), (1, 0), (0, 1_000_003, 0)]
    assert len({numbers(*key) for key in keys}) == len(set(keys))


def test_nor_do_numpys() -> None:
    """Where lists of numbers do: numpy fills them up with zeros."""
    assert np.random.default_rng([0, 3, 1]).random() == np.random.default_rng([0, 3, 1, 0]).random()
    keys = [(0,), (0, 0), (0, 3, 1), (0, 3, 1, 0), (2**32,), (2**32, 3), (0, 2**32), (1, 0), (0, 1)]
    assert len({numpy_generator(*key).random() for key in keys}) == len(keys)
    assert numpy_generator(3, 4).random() == numpy_generator(3, 4).random()


def test_the_state_is_numpys() -> None:
    """The words lie where torch keeps them: its integers are those of numpy's generator of the same state."""
    ours = generator(2**40 + 3, 5)
    twister = np.random.MT19937(np.random.SeedSequence((3, 2**8), spawn_key=(5, 0)))
    wanted = twister.random_raw(2001)[1:].astype(np.int64) % 2**16  # numpy begins with its state's last word
    assert torch.randint(2**16, (2000,), generator=ours).tolist() == wanted.tolist()


def test_the_state_is_repeatable_and_copied() -> None:
    assert numbers(3, 4) == numbers(3, 4)
    assert abs(np.mean([numbers(s, 1) for s in range(200)]) - 0.5) < 0.03


@pytest.mark.parametrize("key", [(-1,), (2**64,), (0, -1)])
def test_numbers_out_of_range_are_refused(key: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="from 0 to"):
        generator(*key)
