"""Base BAGEL (ByteDance-Seed/Bagel): it draws, with thinking or without, edits, and answers questions about images.

It was not trained to reflect on its own image, so its loop needs a critic; the critic's words are an edit.
"""

from irg.reasoning.protocols.base import Protocol, Task
from irg.reasoning.protocols.pinned_texts import PINNED_TEXTS


class Bagel(Protocol):
    """BAGEL-7B-MoT as its authors run it."""

    name = "bagel"
    texts = PINNED_TEXTS["bagel"]
    settings = {
        "mode": "direct",
        "max_think_tokens": 1000,
        "improve_cfg_img_scale": 2.0,
        "improve_cfg_interval": (0.0, 1.0),
        "improve_cfg_renorm_type": "text_channel",
    }

    def text_names(self, task: Task, mode: str) -> tuple[str, ...]:
        """Thinking has a system prompt; the rest has none."""
        if mode != "think":
            return ()
        return ("answer",) if task == "ask" else ("think",)
