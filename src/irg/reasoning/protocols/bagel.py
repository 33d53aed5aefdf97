"""Base BAGEL (ByteDance-Seed/Bagel): it draws, with thinking or without, edits, and answers questions about images.

It was not trained to reflect on its own image, so its loop needs a critic; the critic's words are an edit.
"""

from irg.engine.ops import Program
from irg.reasoning.protocols.base import Job, Protocol, Step, Task
from irg.reasoning.protocols.pinned_texts import PINNED_TEXTS


class Bagel(Protocol):
    """BAGEL-7B-MoT as its authors run it."""

    name = "bagel"
    texts = PINNED_TEXTS["bagel"]
    reflects = False
    settings = {
        "mode": "direct",
        "max_think_tokens": 1000,
        "improve_cfg_img_scale": 2.0,
        "improve_cfg_interval": (0.0, 1.0),
        "improve_cfg_renorm_type": "text_channel",
    }

    def loop(self, job: Job) -> Program:
        """Prompt -> image; then what a critic says is an edit of the newest image, until it is done."""
        steps: list[Step] = []
        if job.task == "improve":
            (image,) = job.images
        else:
            steps = yield from self.direct(job)
            assert steps[0].image is not None
            image = steps[0].image.image
        for turn in range(1, job.settings.rounds + 1):
            critique = yield from job.consult(turn, image)
            if critique.stop:
                return [*steps, Step.of(critique)]
            assert critique.verdict is not None, "who can't reflect keeps the image where the critic fails"
            drawn = yield from self.edit_round(job, turn, image, critique.verdict.change)
            steps.append(Step(critique.verdict.change, drawn, critique=critique))
            image = drawn.image
        return steps

    def text_names(self, task: Task, mode: str) -> tuple[str, ...]:
        """Its loop has no texts but the critic's."""
        return super().text_names(task, mode) if mode == "think" and task != "improve" else ()
