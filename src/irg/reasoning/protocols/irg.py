"""The paper's protocol (arXiv 2509.06945): think, draw, then look, reflect in text, and draw a better image.

Guidance (``docs/architecture.md``): the unconditional text branch of a first image holds the system prompt only; that
of a later image holds everything but the newest reflection. The unconditional image branch of a later image leaves out
every image looked at. With ``reflection_context: prompt`` there is nothing but the prompt, the newest image and its
reflection.
"""

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any

from PIL.Image import Image

from irg.critics import TextCritic, Verdict
from irg.engine.ops import Drawn, Forget, Handles, Look, Operation, Program, Said, Say, Written
from irg.reasoning.critique import NO_CRITIQUE, OUT_OF_BUDGET, Critique
from irg.reasoning.protocols.base import Job, Protocol, Step
from irg.results.reflection import Reflection, first_sentence, is_done


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
            step, image = yield from self._think_and_draw(job, prompt.handles)
            steps = [step]
        looked: Handles = ()
        for turn in range(1, job.settings.rounds + 1):
            planned = steps[-1 if job.settings.revise == "thinking" else 0].text if steps else None
            judged = yield from self._judge(job, turn, image, planned, prompt.handles, looked)
            if isinstance(judged, Step):
                return [*steps, judged]
            looked = judged.looked
            if job.settings.revise == "thinking":
                yield Forget(prompt.handles)
                looked = ()
                step, image = yield from self._think_and_draw(job, prompt.handles, judged)
            else:
                drawn: Drawn = yield job.draw(turn, judged.handles, looked)
                step, image = Step(judged.reflection, drawn, critique=judged.critique), drawn.image
            steps.append(step)
        return steps

    def _think_and_draw(
        self, job: Job, prompt: Handles, judged: "_Judged | None" = None
    ) -> Generator[Operation, Any, tuple[Step, Image]]:
        """A thinking on the prompt, and its image. ``judged``: the image before it, if there was one."""
        thinking, details = yield from job.think(prompt)
        drawn: Drawn = yield job.draw(0, prompt + thinking.handles)
        if judged is None:
            return Step(thinking, drawn, details), drawn.image
        step = Step(thinking, drawn, details, critique=judged.critique, reflection=judged.reflection)
        return step, drawn.image

    def _judge(
        self, job: Job, turn: int, image: Image, thinking: str | None, prompt: Handles, looked: Handles
    ) -> Generator[Operation, Any, "Step | _Judged"]:
        """Look at the newest image and reflect, in the model's own words or a critic's. A step ends the request."""
        reads = isinstance(job.critic, TextCritic)
        if reads:  # it is asked once the model has written
            critique = NO_CRITIQUE if job.may_begin(turn) else OUT_OF_BUDGET
        else:
            critique = yield from job.consult(turn, image, thinking)
        if critique.stop:
            return Step.of(critique, in_template(job.prompt, critique.verdict))
        if job.settings.reflection_context == "prompt":
            yield Forget(prompt)
            looked = ()
        shown: Said = yield _look(job, image)
        looked += shown.handles
        given = in_template(job.prompt, critique.verdict)
        if given is None:
            written: Written = yield job.write(turn)
            if reads:
                text, written = yield from _to_be_read(job, written, prompt)
                critique = yield from job.consult(turn, image, thinking, text)
                if critique.stop:
                    return Step(written, None, stop=critique.stop, critique=critique)
                given = in_template(job.prompt, critique.verdict)
            if given is None:
                if job.settings.stop_when_done and is_done(written.text):
                    return Step(written, None, stop="done", critique=critique)
                return _Judged(critique, written, written.handles, looked)
            if job.settings.revise == "thinking":
                return _Judged(critique, written, written.handles, looked)
            yield Forget(shown.handles)
        said: Said = yield Say(given)
        return _Judged(critique, given, said.handles, looked)


def _to_be_read(job: Job, written: Written, prompt: Handles) -> Generator[Operation, Any, tuple[str, Written]]:
    """What a critic reads of a reflection: its text; or what the model answers when it is asked, with nothing but the
    prompt in sight, whether what it says that it sees is right. And the reflection, with the seconds of both."""
    if not (isinstance(job.critic, TextCritic) and job.critic.asks):
        return written.text, written
    yield Forget(prompt)
    yield Say(first_sentence(written.text))
    answer = yield from job.check()
    return answer.text, replace(written, seconds=written.seconds + answer.seconds)


@dataclass(frozen=True)
class _Judged:
    """What was said of an image that is to be drawn again: by whom, the text, its part, and the images looked at."""

    critique: Critique
    reflection: Written | str
    handles: Handles
    looked: Handles


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
