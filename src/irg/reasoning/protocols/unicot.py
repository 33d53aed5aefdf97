"""Uni-CoT v0.1 (Fr0zenCrane/UniCoT, arXiv 2508.05606): evaluate the image, suggest an edit, word it anew, draw."""

from collections.abc import Generator
from dataclasses import replace
from typing import Any

from PIL.Image import Image

from irg.engine.ops import Drawn, Forget, Handles, Operation, Program, Said, Say, Written
from irg.reasoning.protocols.base import Job, Protocol, Step
from irg.reasoning.protocols.pinned_texts import PINNED_TEXTS
from irg.sequence.images import ResizeRule

_TRIES = 3  # of an evaluation and suggestion before "all is good" is believed
STOP_PHRASES = ("stop_phrase_1", "stop_phrase_2", "stop_phrase_3", "stop_phrase_4")


class UniCoT(Protocol):
    """A round sees system prompt, prompt, thinking and the newest image alone: through the ViT to evaluate it, through
    both encoders to draw."""

    name = "unicot"
    texts = PINNED_TEXTS["unicot"]
    vit_resize = ResizeRule(980, 378, 14)
    settings = {
        "rounds": 21,
        "max_think_tokens": 2048,
        "max_reflect_tokens": 8192,
        "improve_cfg_img_scale": 1.5,
        "improve_cfg_interval": (0.0, 1.0),
        "improve_cfg_renorm_type": "text_channel",
    }

    def think(self, job: Job) -> Program:
        """Prompt -> thinking -> image. The thinking follows the prompt said twice, the image the prompt said once."""
        yield Say(job.system)
        prompt: Said = yield Say(job.prompt)
        yield Say(job.prompt)
        thinking: Written = yield job.write()
        yield Forget(prompt.handles)
        thought: Said = yield Say(thinking.text)
        drawn: Drawn = yield job.draw(0, tuple(range(thought.handles[-1] + 1)))  # the text branch is empty
        return [Step(thinking, drawn)]

    def loop(self, job: Job) -> Program:
        """Thinking and image, then evaluation, suggestion and image until a suggestion says that all is good."""
        steps: list[Step] = []
        if job.task == "improve":
            (image,) = job.images
        else:
            steps = yield from self.think(job)
            assert steps[0].image is not None
            image = steps[0].image.image
            yield Forget()
        yield Say(job.system)
        said: Said = yield Say(job.prompt)
        if steps:
            said = yield Say(steps[0].text.strip())
        context = said.handles
        for turn in range(1, job.settings.rounds + 1):
            critique = yield from job.consult(turn, image, steps[0].text if steps else None)
            if critique.stop:
                return [*steps, Step.of(critique)]
            if critique.verdict is not None:
                reflected = Step(critique.verdict.change, None, critique=critique)
            else:
                reflected = replace((yield from self._reflect(job, turn, context, image)), critique=critique)
            if reflected.stop:
                return [*steps, reflected]
            yield Forget(context)
            shown: Said = yield job.look(image)
            edit: Said = yield Say(reflected.text)
            drawn: Drawn = yield job.draw(turn, edit.handles, shown.handles)
            steps.append(replace(reflected, image=drawn))
            image = drawn.image
        return steps

    def _reflect(self, job: Job, turn: int, context: Handles, image: Image) -> Generator[Operation, Any, Step]:
        """Evaluation, suggestion, and the suggestion worded anew, as a step without its image."""
        evaluation, suggestion, done = yield from self._evaluate(job, turn, context, image)
        if done:
            return Step(suggestion, None, {"evaluation": evaluation.text}, stop="done")
        yield Forget(evaluation.handles)
        yield Say(job.texts["rewriting_request"])
        rewritten: Written = yield job.write(turn)
        return Step(rewritten, None, {"evaluation": evaluation.text, "suggestion": suggestion.text})

    def _evaluate(
        self, job: Job, turn: int, context: Handles, image: Image
    ) -> Generator[Operation, Any, tuple[Written, Written, bool]]:
        """Evaluation and suggestion; whether the suggestion says that all is good, each time it was asked."""
        phrases = [job.texts[name] for name in STOP_PHRASES]
        for _ in range(_TRIES):
            yield Forget(context)
            yield job.look(image, vae=False)
            evaluation: Written = yield job.write(turn)
            suggestion: Written = yield job.write(turn)
            if not any(phrase in suggestion.text for phrase in phrases):
                return evaluation, suggestion, False
        return evaluation, suggestion, True
