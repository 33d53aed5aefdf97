"""Guessing how a text goes on, so that several of its tokens can be checked in one forward.

Thoughts repeat: a reflection ends with most of the plan it began from, and both keep to a form. What followed the last
few tokens before is a good guess at what follows them now (prompt lookup, a kind of speculative decoding: Leviathan et
al. 2023). A guess is fed together with the token before it, and counts only if it is what the model itself then
chooses: texts are the same with and without.
"""

from collections.abc import Sequence

SPANS = (4, 2)
"""How many tokens are looked at for the next one, the longest first."""
MOST = 7
"""Guesses that go into one forward."""
REMEMBERED = 200_000
"""Spans kept, some 30 MB; beyond that what was learnt is dropped."""


class Guesser:
    """What followed which tokens. It starts from ``forms``, example texts that a model brings."""

    def __init__(self, forms: Sequence[Sequence[int]] = ()) -> None:
        self._follows: dict[tuple[int, ...], int] = {}
        for text in forms:
            self.learn(text, 1)
        self._first = dict(self._follows)

    def reset(self) -> None:
        """Forget everything but the forms."""
        self._follows = dict(self._first)

    def learn(self, text: Sequence[int], start: int) -> None:
        """Note what ``text`` (from its bos on) says from token ``start`` on."""
        if len(self._follows) > REMEMBERED:
            self.reset()
        for i in range(start, len(text)):
            for span in SPANS:
                self._follows[tuple(text[max(0, i - span) : i])] = text[i]

    def guess(self, text: Sequence[int], most: int) -> list[int]:
        """At most ``most`` tokens that may follow ``text`` (from its bos on)."""
        tail, guesses = list(text[-max(SPANS) :]), list[int]()
        while len(guesses) < most:
            found = next((self._follows[key] for span in SPANS if (key := tuple(tail[-span:])) in self._follows), None)
            if found is None:
                break
            guesses.append(found)
            tail.append(found)
        return guesses


def next_limit(limit: int, kept: int) -> int:
    """How many guesses to make after ``kept`` of at most ``limit`` were right: more while they are, few while not."""
    return min(MOST, kept + 3) if kept else max(1, limit // 2)
