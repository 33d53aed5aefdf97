"""What irg-mini does not know of a prompt, as a note beside its images: ``mini`` of the group ``irg.prompt_notes``.

Code says that, by the vocabulary that the model was trained on; the model does not.
"""

from irg_mini.world.prompt_check import unknown_in
from irg_mini.world.vocabularies import find_vocabulary

MOST = 8
"""Words that are named."""


def unknown_words(prompt: str) -> list[str]:
    """Names the words of a prompt that irg-mini does not know."""
    found = unknown_in(prompt, find_vocabulary("geneval"))
    if not found:
        return []
    named = [word if nearest is None else f"{word} (nearest: {nearest})" for word, nearest in found.items()]
    more = f" and {len(named) - MOST} more" if len(named) > MOST else ""
    return [f"irg-mini does not know: {', '.join(named[:MOST])}{more}. It leaves such things out or replaces them."]
