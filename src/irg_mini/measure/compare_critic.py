"""A critic by code: what irg-mini says that it sees, compared exactly with what the prompt asks for.

It looks at nothing. The model looks, and lists what it sees; the list is parsed, and so is the prompt. What follows is
the comparison that a model of twelve million parameters does not learn reliably.
"""

from irg.critics import CriticError, CriticOptions, Review, TextCritic, Verdict
from irg_mini import world


class CompareCritic(TextCritic):
    """Checks plans before they are drawn, and what the model sees in the image after that.

    Attributes:
        size: pixels that a layout stands for; its verdicts hardly depend on it.
    """

    def __init__(self, size: int = 128) -> None:
        super().__init__("mini-compare")
        self.size = size

    def accepts(self, prompt: str, thinking: str) -> bool:
        """Whether a plan is a layout without a flaw, and with room for everything: what overlaps is hard to draw and to
        tell apart. A plan of a prompt that the world can't read is always accepted."""
        request = world.parse_prompt(prompt)
        if request is None:
            return True
        try:
            scene = world.parse_layout(thinking)
        except ValueError:
            return False
        if request.background is not None and scene.background != request.background:
            return False
        if world.worst_overlap(request, scene) > world.TOUCHING:
            return False
        return not world.find_flaws(request, world.see(scene, self.size), size=self.size)

    def judge(self, review: Review) -> Verdict:
        """See :meth:`irg.critics.WorkerCritic.judge`."""
        request = world.parse_prompt(review.prompt)
        if request is None:
            raise CriticError("refused", f"the mini world does not know what {review.prompt[:60]!r} asks for")
        said = _reflection(review.reflection or "")
        try:
            shown = world.parse_layout(f"Scene: studio. Things: {said.seen}.")
        except ValueError as error:
            raise CriticError("bad_answer", f"the reflection does not list what is in the image: {error}") from None
        flaws = world.find_flaws(request, world.see(shown, self.size), size=self.size)
        if not flaws:
            return Verdict("", "", True, 1.0)
        wrong = "; ".join(world.describe_flaws(flaws))
        return Verdict(wrong, "draw what the prompt asks for", False, 1 / (1 + len(flaws)))


def _reflection(text: str) -> world.Reflection:
    try:
        return world.parse_reflection(text)
    except ValueError as error:
        raise CriticError("bad_answer", str(error)) from None


def make(rest: str, options: CriticOptions) -> CompareCritic:
    """What irg-mini says that it sees, compared exactly with the prompt."""
    if rest:
        raise ValueError(f"the critic mini-compare takes nothing after its name, got {rest!r}")
    return CompareCritic()
