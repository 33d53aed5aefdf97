"""R3 (sen-ye/R3, arXiv 2602.15772): each round asks for one edit of the image, in a context made anew, and makes it."""

from irg.engine.ops import Drawn, Forget, Program, Said, Say, Written
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
            yield Forget()
            yield Say(job.texts["answer"])
            yield job.look(image, vae=False)
            yield Say(job.texts["question"].format(prompt=job.prompt))
            reflection: Written = yield job.write(turn)
            edit = edit_of(reflection.text)
            if edit is None:
                return [*steps, Step(reflection, None, stop="done")]
            yield Forget()
            shown: Said = yield job.look(image)
            said: Said = yield Say(edit)
            drawn: Drawn = yield job.draw(turn, said.handles, shown.handles)
            steps.append(Step(reflection, drawn, {"edit": edit}))
            image = drawn.image
        return steps


def edit_of(reflection: str) -> str | None:
    """The edit that a reflection asks for: what follows its thinking. None: no further edit, or no thinking's end."""
    _, closed, edit = reflection.rpartition("</think>")
    edit = edit.strip()
    return edit if closed and edit and _NO_EDIT not in edit.lower() else None
