"""Random number generators that never alias: from (seed, stream, ...) to a ``torch.Generator`` or a numpy one.

``torch.Generator.manual_seed`` on the CPU uses the low 32 bits of its seed only, sums such as ``seed * k + step``
collide, and numpy's ``default_rng([3, 1])`` is ``default_rng([3, 1, 0])``. Here all numbers go into a ``SeedSequence``,
each at a place of its own.
"""

import numpy as np
import torch

_STATE_WORDS = slice(3, 3 + 624)  # of a CPU generator's state as int64: after its seed, counters and position


def generator(seed: int, *stream: int) -> torch.Generator:
    """A CPU generator for ``seed`` and the numbers of a stream (such as a purpose, a step and a rank).

    Different arguments give independent generators: ``generator(0, 12)``, ``generator(12)``, ``generator(0, 0, 12)``
    and ``generator(2**32)`` have nothing in common. A seed below 2^32 without a stream gives
    ``torch.Generator().manual_seed(seed)``.

    Raises:
        ValueError: a number is negative or not below 2^64.
    """
    sequence = _sequence(seed, *stream)
    made = torch.Generator()
    if seed < 2**32 and not stream:
        return made.manual_seed(seed)
    state = made.manual_seed(0).get_state()
    words = np.random.MT19937(sequence).state["state"]["key"].astype(np.int64)
    state.view(torch.int64)[_STATE_WORDS] = torch.from_numpy(words)
    return made.set_state(state)


def numpy_generator(seed: int, *stream: int) -> np.random.Generator:
    """The same for numpy; its numbers have nothing in common with those of :func:`generator`.

    Raises:
        ValueError: a number is negative or not below 2^64.
    """
    return np.random.default_rng(_sequence(seed, *stream))


def _sequence(seed: int, *stream: int) -> np.random.SeedSequence:
    for number in (seed, *stream):
        if not 0 <= number < 2**64:
            raise ValueError(f"a seed must be from 0 to 2**64 - 1, got {number}")
    # two words for each number, so that no two argument lists give the same words
    entropy, *keys = ((number % 2**32, number >> 32) for number in (seed, *stream))
    return np.random.SeedSequence(entropy, spawn_key=tuple(word for key in keys for word in key))
