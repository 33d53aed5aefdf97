"""Ways of reasoning, as programs for the engine. Each is a short generator over Say, Write, Draw, Look and Forget.

Guidance (``docs/architecture.md``): the unconditional text branch of a first image holds the system prompt only; that
of a later image holds everything but the newest reflection. The unconditional image branch of a later image leaves out
every image looked at. With ``reflection_context: prompt`` there is nothing but the prompt, the newest image and its
reflection.
"""

from collections.abc import Callable
from dataclasses import dataclass

from PIL.Image import Image

from irg.engine.ops import Draw, Drawn, Forget, Handles, Look, Program, Said, Say, Write, Written
from irg.reasoning.settings import Settings


@dataclass(frozen=True)
class Job:
    """What a program needs to know: prompt, system prompt, settings, and the size in pixels."""

    prompt: str
    system: str
    settings: Settings
    height: int
    width: int
    is_done: Callable[[str], bool] = lambda reflection: False

    def write(self, turn: int = 0) -> Write:
        """The thinking of turn 0, the reflection of a later turn."""
        own, later = self.settings.temperature, self.settings.reflect_temperature
        return Write(self.settings.max_think_tokens, own if turn == 0 or later is None else later)

    def look(self, image: Image) -> Look:
        """Show an image back, as the settings say."""
        how = self.settings.look
        return Look(image, vae=how in ("both", "vae"), vit=how in ("both", "vit"))

    def draw(self, turn: int, drop_text: Handles, drop_image: Handles = ()) -> Draw:
        """The image of a turn; the unconditional branches leave out these parts."""
        return Draw(self.height, self.width, self.settings.draw(turn), drop_text, drop_image)


@dataclass(frozen=True)
class Step:
    """A turn as it happened: the text (None in direct mode) and the image (None if the reflection said "done")."""

    thinking: Written | None
    image: Drawn | None


def direct(job: Job) -> Program:
    """Prompt -> image, as the base model does it."""
    prompt: Said = yield Say(job.prompt)
    image = yield job.draw(0, prompt.handles)
    return [Step(None, image)]


def think(job: Job) -> Program:
    """Prompt -> thinking -> image."""
    if job.system:
        yield Say(job.system)
    prompt: Said = yield Say(job.prompt)
    thinking: Written = yield job.write()
    image = yield job.draw(0, prompt.handles + thinking.handles)
    return [Step(thinking, image)]


def irg(job: Job) -> Program:
    """Prompt -> thinking -> image, then look -> reflect -> better image until the rounds are up or it is done."""
    if job.system:
        yield Say(job.system)
    prompt: Said = yield Say(job.prompt)
    thinking: Written = yield job.write()
    image: Drawn = yield job.draw(0, prompt.handles + thinking.handles)
    steps: list[Step] = [Step(thinking, image)]
    looked: Handles = ()
    for turn in range(1, job.settings.rounds + 1):
        if job.settings.reflection_context == "prompt":
            yield Forget(prompt.handles)
            looked = ()
        shown: Said = yield job.look(image.image)
        looked += shown.handles
        reflection: Written = yield job.write(turn)
        if job.is_done(reflection.text):
            return [*steps, Step(reflection, None)]
        image = yield job.draw(turn, reflection.handles, looked)
        steps.append(Step(reflection, image))
    return steps


def redraw(job: Job, thinking: str, image: Image, reflection: str) -> Program:
    """A later image from a thinking text, an image and a reflection that are given."""
    if job.system:
        yield Say(job.system)
    yield Say(job.prompt)
    if job.settings.reflection_context == "all":
        yield Say(thinking)
    shown: Said = yield job.look(image)
    given: Said = yield Say(reflection)
    drawn: Drawn = yield job.draw(1, given.handles, shown.handles)
    return [Step(None, drawn)]


PROGRAMS: dict[str, Callable[[Job], Program]] = {"direct": direct, "think": think, "irg": irg}
