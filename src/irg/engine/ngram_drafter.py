"""Speculative decoding with n-grams: draft tokens that the model then checks, several in one forward.

Thinking repeats: a reflection ends with most of the text it began from, and both keep to a form. What followed the last
few tokens before is a good draft of what follows them now (prompt lookup decoding; Leviathan et al. 2023). Drafts are
fed together with the token before them, and one counts only if it is what the model itself then chooses. In float32 on
a CPU the texts are the same with and without drafting. In bfloat16 on a GPU a forward over several tokens rounds
differently from one over a single token, so a close choice between two tokens may fall the other way.
"""

from collections.abc import Sequence

NGRAM_SIZES = (4, 2)
"""How many tokens the next one is looked up by, the longest first."""
MAX_DRAFT_TOKENS = 7
"""Draft tokens in one forward."""
MAX_NGRAMS = 200_000
"""N-grams kept, some 30 MB; beyond that all but those of the draft texts are dropped."""


class NgramDrafter:
    """Which token followed which n-gram last. It starts from ``draft_texts``, examples that come with a model."""

    def __init__(self, draft_texts: Sequence[Sequence[int]] = ()) -> None:
        self._next: dict[tuple[int, ...], int] = {}
        for text in draft_texts:
            self.learn(text, 1)
        self._initial = dict(self._next)

    def reset(self) -> None:
        """Drop everything but the n-grams of the draft texts."""
        self._next = dict(self._initial)

    def learn(self, text: Sequence[int], start: int) -> None:
        """Add the n-grams of ``text`` (from its bos on) that end at token ``start`` or later."""
        if len(self._next) > MAX_NGRAMS:
            self.reset()
        for i in range(start, len(text)):
            for size in NGRAM_SIZES:
                self._next[tuple(text[max(0, i - size) : i])] = text[i]

    def draft(self, text: Sequence[int], max_tokens: int) -> list[int]:
        """At most ``max_tokens`` tokens that may follow ``text`` (from its bos on)."""
        tail, drafted = list(text[-max(NGRAM_SIZES) :]), list[int]()
        while len(drafted) < max_tokens:
            keys = (tuple(tail[-size:]) for size in NGRAM_SIZES)
            found = next((self._next[key] for key in keys if key in self._next), None)
            if found is None:
                break
            drafted.append(found)
            tail.append(found)
        return drafted


def next_draft_length(length: int, accepted: int) -> int:
    """How many tokens to draft after ``accepted`` of at most ``length``: more while drafts are right, else fewer."""
    return min(MAX_DRAFT_TOKENS, accepted + 3) if accepted else max(1, length // 2)
