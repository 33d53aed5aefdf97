"""UniReason 1.0 (AlenjandroWang/UniReason, arXiv 2602.02437): think, draw, refine once.

Two ways of its authors' evaluation. ``unireason`` (their script for WISE) refines by the thinking alone, without
writing; ``unireason-suggest`` (CoReBench, UniGenBench) first writes a suggestion.
"""

from collections.abc import Generator
from dataclasses import replace
from typing import Any

from PIL.Image import Image

from irg.critics import Verdict
from irg.engine.ops import Drawn, Forget, Operation, Program, Said, Say, Written
from irg.reasoning.protocols.base import Job, Protocol, Step
from irg.reasoning.protocols.pinned_texts import PINNED_TEXTS
from irg.sequence.images import ResizeRule

_REFINING = {"improve_cfg_img_scale": 1.5, "improve_cfg_renorm_type": "text_channel"}


class UniReason(Protocol):
    """Refines from image and thinking; the image-free branch holds another text: a sentence around both."""

    name = "unireason"
    refines_by_thinking = True
    texts = PINNED_TEXTS["unireason"]
    max_rounds = 1
    vit_resize = ResizeRule(980, 378, 14)
    settings = _REFINING | {
        "rounds": 1,
        "max_think_tokens": 2048,
        "max_reflect_tokens": 8192,
        "improve_cfg_text_scale": 3.0,
        "improve_cfg_interval": (0.4, 1.0),
    }

    def think(self, job: Job) -> Program:
        """Prompt -> thinking -> image; the text branch is empty."""
        system: Said = yield Say(job.system)
        prompt: Said = yield Say(job.prompt)
        thinking: Written = yield job.write()
        drawn: Drawn = yield job.draw(0, system.handles + prompt.handles + thinking.handles)
        return [Step(thinking, drawn)]

    def loop(self, job: Job) -> Program:
        """Thinking and image, then one refinement."""
        steps: list[Step] = []
        if job.task == "improve":
            (image,), thought = job.images, ""
            if self.refines_by_thinking:
                yield Say(job.system)
                yield Say(job.prompt)
                written: Written = yield job.write()
                thought = written.text
        else:
            steps = yield from self.think(job)
            assert steps[0].image is not None
            image, thought = steps[0].image.image, steps[0].text
        critique = yield from job.consult(1, image, thought)
        if critique.stop:
            return [*steps, Step.of(critique)]
        yield Forget()
        shown = cropped(image)
        if shown.size != image.size:
            job = job.sized_by(shown)
        refined = yield from self._refine(job, shown, thought, critique.verdict)
        return [*steps, replace(refined, critique=critique)]

    def _refine(self, job: Job, image: Image, thought: str, verdict: Verdict | None) -> Generator[Operation, Any, Step]:
        """A critic decides whether to refine; these weights take no words."""
        shown: Said = yield job.look(image)
        again: Said = yield Say(thought)
        sentence: Said = yield Say(job.texts["thought_sentence"].format(think_text=thought, prompt=job.prompt))
        drawn: Drawn = yield job.draw(
            1,
            drop_text=again.handles + sentence.handles,
            drop_image=shown.handles + again.handles,
            drop=sentence.handles,
        )
        return Step(None, drawn)


class UniReasonSuggest(UniReason):
    """Writes a suggestion on the ViT's view of the image, and refines by it."""

    name = "unireason-suggest"
    refines_by_thinking = False
    settings = UniReason.settings | {
        "cfg_interval": (0.0, 1.0),
        "improve_cfg_text_scale": 4.0,
        "improve_cfg_interval": (0.0, 1.0),
    }

    def _refine(self, job: Job, image: Image, thought: str, verdict: Verdict | None) -> Generator[Operation, Any, Step]:
        """A critic's words take the place of the suggestion."""
        system: Said = yield Say(job.texts["refinement_system"])
        prompt: Said = yield Say(job.prompt)
        request: Said = yield Say(job.texts["request"])
        refined = Step(verdict.change if verdict is not None else None, None)
        if verdict is None:
            yield job.look(image, vae=False)
            suggestion: Written = yield job.write(1)
            refined = Step(suggestion, None)
        yield Forget(request.handles)
        shown: Said = yield job.look(image)
        suggested: Said = yield Say(refined.text)
        think: Said = yield Say(job.system)
        again: Said = yield Say(job.prompt)
        words = job.texts["suggestion_sentence"].format(refine_output=refined.text, prompt=job.prompt)
        sentence: Said = yield Say(words)
        image_free = think.handles + again.handles + sentence.handles
        asked = system.handles + prompt.handles + request.handles
        drawn: Drawn = yield job.draw(
            1,
            drop_text=suggested.handles + image_free,
            drop_image=asked + shown.handles + suggested.handles,
            drop=image_free,
        )
        return replace(refined, image=drawn)


def cropped(image: Image) -> Image:
    """The image without black borders, as the authors' scripts show it again."""
    box = image.getbbox()
    return image if box in (None, (0, 0, *image.size)) else image.crop(box)
