"""Uni-CoT v0.2, its mode of reflection: first image from the prompt worded anew, then one edit a round."""

from collections.abc import Generator
from dataclasses import replace
from typing import Any

from PIL.Image import Image

from irg.engine.ops import Drawn, Forget, Operation, Program, Said, Say, Written
from irg.reasoning.protocols.base import Job, Protocol, Step
from irg.reasoning.protocols.pinned_texts import PINNED_TEXTS
from irg.reasoning.protocols.unicot import STOP_PHRASES
from irg.sequence.images import ResizeRule

_DRAWING_VIT = ResizeRule(518, 224, 14)  # evaluating takes the larger rule


class UniCoT02(Protocol):
    """Read from the authors' script; there is no recorded run to compare with. Its other mode, which breaks the prompt
    into subtasks, is not here."""

    name = "unicot-v0.2"
    texts = PINNED_TEXTS["unicot-v0.2"]
    vit_resize = ResizeRule(980, 378, 14)
    settings = {
        "rounds": 20,
        "max_think_tokens": 2048,
        "max_reflect_tokens": 8192,
        "improve_cfg_img_scale": 1.5,
        "improve_cfg_interval": (0.0, 1.0),
        "improve_cfg_renorm_type": "text_channel",
    }

    def think(self, job: Job) -> Program:
        """Prompt -> thinking, which words it anew -> image from these words alone."""
        yield Say(job.system)
        yield Say(job.prompt)
        thinking: Written = yield job.write()
        yield Forget()
        said: Said = yield Say(inside("think", thinking.text))
        drawn: Drawn = yield job.draw(0, said.handles)
        return [Step(thinking, drawn)]

    def loop(self, job: Job) -> Program:
        """Thinking and image, then evaluation, suggestion and edit."""
        steps: list[Step] = []
        thought = ""
        if job.task == "improve":
            (image,) = job.images
        else:
            steps = yield from self.think(job)
            assert steps[0].image is not None
            image, thought = steps[0].image.image, steps[0].text.strip()
        for turn in range(1, job.settings.rounds + 1):
            critique = yield from job.consult(turn, image, thought or None)
            if critique.stop:
                return [*steps, Step.of(critique)]
            suggestion: Written | str
            details = {}
            if critique.verdict is not None:
                suggestion = edit = critique.verdict.change
            else:
                evaluation, suggestion = yield from self._evaluate(job, turn, image, thought)
                details = {"evaluation": evaluation.text}
                if any(job.texts[name] in suggestion.text for name in STOP_PHRASES):
                    return [*steps, Step(suggestion, None, details, stop="done", critique=critique)]
                edit = inside("sugg", suggestion.text)
            yield Forget()
            look = job.look(image)
            shown: Said = yield look if look.vit_resize is None else replace(look, vit_resize=_DRAWING_VIT)
            said = yield Say(edit)
            drawn = yield job.draw(turn, said.handles, shown.handles)
            steps.append(Step(suggestion, drawn, details | {"edit": edit}, critique=critique))
            image = drawn.image
        return steps

    @staticmethod
    def _evaluate(
        job: Job, turn: int, image: Image, thought: str
    ) -> Generator[Operation, Any, tuple[Written, Written]]:
        """Evaluation and suggestion, in a context of their own."""
        yield Forget()
        yield Say(job.system)
        yield Say(job.prompt)
        if thought:
            yield Say(thought)
        yield job.look(image, vae=False)
        evaluation: Written = yield job.write(turn)
        suggestion: Written = yield job.write(turn)
        return evaluation, suggestion


def inside(tag: str, text: str) -> str:
    """What stands between the last opening tag and the closing tag after it, in one line and stripped. Where a tag is
    missing, the text reaches to that end."""
    found = text.rpartition(f"<{tag}>")[2].partition(f"</{tag}>")[0].strip()
    return found.replace("\n", " ").replace("\r", " ")
