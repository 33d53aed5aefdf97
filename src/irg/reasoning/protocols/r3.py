"""R3 (sen-ye/R3, arXiv 2602.15772): each round asks for one edit of the image, in a context made anew, and makes it."""

from collections.abc import Generator
from typing import Any

from PIL.Image import Image

from irg.engine.ops import Forget, Operation, Program, Say, Written
from irg.reasoning.protocols.base import Job, Protocol, Step
from irg.reasoning.protocols.pinned_texts import PINNED_TEXTS
from irg.sequence.images import ResizeRule

_NO_EDIT = "no further edit"


class R3(Protocol):
    """As the trainer's evaluation runs it; no weights are published."""

    name = "r3"
    texts = PINNED_TEXTS["r3"]
    vae_resize = ResizeRule(512, 256, 16)
    vit_resize = ResizeRule(504, 252, 14)
    posterior = "mean"
    settings = {
        "rounds": 3,
        "max_think_tokens": 196,
        "max_reflect_tokens": 384,
        "top_k": 1000,
        "top_p": 0.9,
        "improve_cfg_img_scale": 1.5,
        "improve_cfg_interval": (0.4, 1.0),
    }

    def loop(self, job: Job) -> Program:
        """Thinking and image, then reflection and edit until none is needed."""
        steps: list[Step] = []
        if job.task == "improve":
            (image,) = job.images
        else:
            steps = yield from self.think(job)
            assert steps[0].image is not None
            image = steps[0].image.image
        for turn in range(1, job.settings.rounds + 1):
            critique = yield from job.consult(turn, image, steps[0].text if steps else None)
            if critique.stop:
                return [*steps, Step.of(critique)]
            reflection: Written | str
            if critique.verdict is not None:
                reflection = edit = critique.verdict.change
            else:
                reflection = yield from self._reflect(job, turn, image)
                edit = edit_of(reflection.text) or ""
                if not edit:
                    return [*steps, Step(reflection, None, stop="done", critique=critique)]
            drawn = yield from self.edit_round(job, turn, image, edit)
            steps.append(Step(reflection, drawn, {"edit": edit}, critique=critique))
            image = drawn.image
        return steps

    def _reflect(self, job: Job, turn: int, image: Image) -> Generator[Operation, Any, Written]:
        """What the model writes of the newest image, in a context of its own."""
        yield Forget()
        yield Say(job.texts["answer"])
        yield job.look(image, vae=False)
        yield Say(job.texts["question"].format(prompt=job.prompt))
        return (yield job.write(turn))


def edit_of(reflection: str) -> str | None:
    """The edit that a reflection asks for: what follows its thinking. None: no further edit, or no thinking's end."""
    _, closed, edit = reflection.rpartition("</think>")
    edit = edit.strip()
    return edit if closed and _NO_EDIT not in edit.lower() else None
