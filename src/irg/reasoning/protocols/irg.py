"""The paper's protocol (arXiv 2509.06945): think, draw, then look, reflect in text, and draw a better image.

Guidance (``docs/architecture.md``): the unconditional text branch of a first image holds the system prompt only; that
of a later image holds everything but the newest reflection. The unconditional image branch of a later image leaves out
every image looked at. With ``reflection_context: prompt`` there is nothing but the prompt, the newest image and its
reflection.
"""

from PIL.Image import Image

from irg.engine.ops import Drawn, Forget, Handles, Look, Program, Said, Say, Written
from irg.reasoning.protocols.base import Job, Protocol, Step
from irg.results.reflection import is_done


class IRG(Protocol):
    """The protocol of models that ``irg train`` makes, and of irg-mini."""

    name = "irg"
    unused = ()

    def loop(self, job: Job) -> Program:
        """Prompt -> thinking -> image, then look -> reflect -> better image."""
        if job.system:
            yield Say(job.system)
        prompt: Said = yield Say(job.prompt)
        steps: list[Step] = []
        if job.task == "improve":
            (image,) = job.images
        else:
            thinking: Written = yield job.write()
            drawn: Drawn = yield job.draw(0, prompt.handles + thinking.handles)
            steps, image = [Step(thinking, drawn)], drawn.image
        looked: Handles = ()
        for turn in range(1, job.settings.rounds + 1):
            if job.settings.reflection_context == "prompt":
                yield Forget(prompt.handles)
                looked = ()
            shown: Said = yield _look(job, image)
            looked += shown.handles
            reflection: Written = yield job.write(turn)
            if job.settings.stop_when_done and is_done(reflection.text):
                return [*steps, Step(reflection, None, stop="done")]
            drawn = yield job.draw(turn, reflection.handles, looked)
            steps.append(Step(reflection, drawn))
            image = drawn.image
        return steps


def redraw(job: Job, thinking: str, image: Image, reflection: str) -> Program:
    """A later image from a thinking text, an image and a reflection that are given."""
    if job.system:
        yield Say(job.system)
    yield Say(job.prompt)
    if job.settings.reflection_context == "all":
        yield Say(thinking)
    shown: Said = yield _look(job, image)
    given: Said = yield Say(reflection)
    drawn: Drawn = yield job.draw(1, given.handles, shown.handles)
    return [Step(None, drawn)]


def _look(job: Job, image: Image) -> Look:
    """Show an image back, as the settings say."""
    how = job.settings.look
    return job.look(image, vae=how in ("both", "vae"), vit=how in ("both", "vit"))
