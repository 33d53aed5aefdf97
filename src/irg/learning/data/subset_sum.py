"""Which of the waiting samples fill a pack best: subset sum, by dynamic programming over a bit set."""

from collections.abc import Sequence


def fullest(lengths: Sequence[int], room: int, grain: int = 16) -> list[int]:
    """Indices, in order, of the samples whose lengths add up to the most that fits into ``room``.

    Lengths are rounded up to whole grains, so the result is the best up to a grain a sample and never too long. Of
    equally full choices the one with earlier samples wins.
    """
    grains = room // grain
    sizes = [-(-length // grain) for length in lengths]
    inside = (1 << (grains + 1)) - 1
    reachable = [1]  # bit s of entry i: the first i samples can add up to s grains
    for size in sizes:
        reachable.append((reachable[-1] | (reachable[-1] << size)) & inside if size <= grains else reachable[-1])
    total = reachable[-1].bit_length() - 1
    chosen = []
    for index in range(len(sizes) - 1, -1, -1):
        if not reachable[index] >> total & 1:  # not to be had without this one
            chosen.append(index)
            total -= sizes[index]
    return chosen[::-1]
