"""The paper's protocol (arXiv 2509.06945): think, draw, then look, reflect in text, and draw a better image.

Guidance (``docs/architecture.md``): the unconditional text branch of a first image holds the system prompt only; that
of a later image holds everything but the newest reflection. The unconditional image branch of a later image leaves out
every image looked at. With ``reflection_context: prompt`` there is nothing but the prompt, the newest image and its
reflection.
"""

from PIL.Image import Image

from irg.critics import Verdict
from irg.engine.ops import Drawn, Forget, Handles, Look, Program, Said, Say, Written
from irg.reasoning.protocols.base import Job, Protocol, Step
from irg.results.reflection import Reflection, is_done


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
            critique = yield from job.consult(turn, image, steps[0].text if steps else None)
            if critique.stop:
                return [*steps, Step.of(critique, in_template(job.prompt, critique.verdict))]
            if job.settings.reflection_context == "prompt":
                yield Forget(prompt.handles)
                looked = ()
            shown: Said = yield _look(job, image)
            looked += shown.handles
            reflection: Written | str | None = in_template(job.prompt, critique.verdict)
            if isinstance(reflection, str):
                said: Said = yield Say(reflection)
                handles = said.handles
            else:
                written: Written = yield job.write(turn)
                if job.settings.stop_when_done and is_done(written.text):
                    return [*steps, Step(written, None, stop="done", critique=critique)]
                reflection, handles = written, written.handles
            drawn = yield job.draw(turn, handles, looked)
            steps.append(Step(reflection, drawn, critique=critique))
            image = drawn.image
        return steps


def in_template(prompt: str, verdict: Verdict | None) -> str | None:
    """A critic's verdict as a reflection in the paper's template; None where there is no verdict."""
    if verdict is None or verdict.text is not None:
        return None if verdict is None else verdict.text
    if verdict.done:
        return Reflection("Nothing is wrong.", "None.", "None.", prompt).to_text()
    steps = f"Take the image as it is. {_sentence(verdict.change)} Keep everything else."
    return Reflection(_sentence(verdict.wrong or verdict.change), _sentence(verdict.change), steps, prompt).to_text()


def _sentence(text: str) -> str:
    text = text.strip()
    return text if text.endswith((".", "!", "?")) else f"{text}."


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
