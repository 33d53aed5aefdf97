"""The critic ``self-check``: the model is asked whether its plan, and what it says that it sees, is what was asked for.

No other model looks: the program asks (``how_to_check`` in the model's ``irg.json``), the model compares in a text of
its own, and that text is read here.
"""

from irg.critics import CriticError, CriticOptions, Review, TextCritic, Verdict
from irg.critics.options import SELF_CHECK
from irg.results.reflection import after_first_sentence, is_done


class SelfCheck(TextCritic):
    """Reads what the model answered."""

    asks = True

    def __init__(self) -> None:
        super().__init__(SELF_CHECK)

    def accepts(self, prompt: str, thinking: str) -> bool:
        """Whether the model said of its thinking that nothing is wrong. ``thinking`` is its answer."""
        return is_done(thinking)

    def judge(self, review: Review) -> Verdict:
        """See :meth:`irg.critics.WorkerCritic.judge`; ``review.reflection`` is the model's answer."""
        if review.reflection is None:
            raise CriticError("bad_answer", "self-check reads what the model answers, and looks at no image")
        if is_done(review.reflection):
            return Verdict("", "", True, 1.0)
        wrong = after_first_sentence(review.reflection)
        if not wrong:
            raise CriticError("bad_answer", f"the model's check says neither yes nor no: {review.reflection[:120]!r}")
        return Verdict(wrong, "draw what the prompt asks for", False, 0.0)


def make(rest: str, options: CriticOptions) -> SelfCheck:
    """The model itself, asked whether its plan, and what it says that it sees, is what the prompt asks for."""
    if rest:
        raise ValueError(f"the critic {SELF_CHECK} takes nothing after its name, got {rest!r}")
    return SelfCheck()
