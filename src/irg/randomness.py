"""Random number generators that never alias: one function from (seed, stream, ...) to a ``torch.Generator``.

``torch.Generator.manual_seed`` on the CPU uses the low 32 bits of its seed only, and sums such as ``seed * k + step``
collide. Here the full Mersenne Twister state is derived by numpy's ``SeedSequence`` from all numbers.
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
    for number in (seed, *stream):
        if not 0 <= number < 2**64:
            raise ValueError(f"a seed must be from 0 to 2**64 - 1, got {number}")
    made = torch.Generator()
    if seed < 2**32 and not stream:
        return made.manual_seed(seed)
    # two words for each number, so that no two argument lists give the same words
    entropy, *keys = ((number % 2**32, number >> 32) for number in (seed, *stream))
    sequence = np.random.SeedSequence(entropy, spawn_key=tuple(word for key in keys for word in key))
    state = made.manual_seed(0).get_state()
    words = np.random.MT19937(sequence).state["state"]["key"].astype(np.int64)
    state.view(torch.int64)[_STATE_WORDS] = torch.from_numpy(words)
    return made.set_state(state)
