"""From a request to its job, checked, and from a job's steps to its trajectory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL.Image import Image

from irg.engine.ops import Written
from irg.image_files import ImageSource, open_image
from irg.model.network.config import ModelConfig
from irg.reasoning.critique import Critics
from irg.reasoning.model_settings import check_question
from irg.reasoning.prompt_notes import notes_on
from irg.reasoning.protocols.base import Job, Protocol, Step, Task, draws_again
from irg.reasoning.protocols.selection import ProtocolTexts
from irg.reasoning.settings import Settings, check_negative_prompt, check_prompt
from irg.reasoning.sizes import ImageSizes
from irg.results.trajectory import Trajectory, Turn

_NEEDED_IMAGES: dict[Task, str] = {
    "generate": "no image",
    "improve": "one image",
    "edit": "at least one image",
    "ask": "at least one image",
}


def several(images: ImageSource | Sequence[ImageSource]) -> Sequence[ImageSource]:
    """Images as a sequence, where one alone may be given."""
    return [images] if isinstance(images, str | Path | bytes | Image) else images


def given_image(source: ImageSource, protocol: Protocol, config: ModelConfig) -> Image:
    """A given image as the autoencoder takes it; the ViT's rule is applied to that, as BAGEL does it.

    Raises:
        ValueError: it can't be read, is too small, or is too narrow to keep its shape.
    """
    image = open_image(source)
    rule = protocol.job_options(config).get("vae_resize") or config.vae_resize
    try:
        rule.check(*image.size)
    except ValueError as error:
        name = f"{source}: " if isinstance(source, str | Path) else "the image's "
        raise ValueError(f"{name}{error}") from error
    return rule.resized(image)


@dataclass(frozen=True)
class Jobs:
    """Makes the jobs of a model in a protocol.

    Attributes:
        model: its name, for records.
        usual: its own settings; they have a size.
        sizes: those that the network draws.
        critics: those that settings may name.
        loaded: what was loaded of the model, for records: weights, precision, adapters.
    """

    model: str
    config: ModelConfig
    protocol: Protocol
    texts: ProtocolTexts
    usual: Settings
    sizes: ImageSizes
    critics: Critics
    loaded: Mapping[str, Any] = field(default_factory=dict)

    def make(
        self, prompt: str, settings: Settings, seed: int, task: Task = "generate", images: Sequence[ImageSource] = ()
    ) -> Job:
        """The job of a request. Its images and the official texts that it needs are read now.

        Raises:
            ValueError: the prompt, an image or the size is not usable, the protocol has no such request, or a text
                can't be had.
        """
        check_prompt(prompt)
        check_negative_prompt(settings, task)
        if bool(images) != (task != "generate") or (task == "improve" and len(images) > 1):
            raise ValueError(f"{task} needs {_NEEDED_IMAGES[task]}, got {len(images)}")
        given = [given_image(image, self.protocol, self.config) for image in images]
        height, width = self._size(settings, given)
        self.protocol.check(replace(settings, height=height, width=width), self.usual, task)
        texts = self.texts.read(task, settings.mode)
        system = self.texts.system(task, texts)
        options = self.protocol.job_options(self.config)
        if draws_again(task, settings.mode):  # the model's own critic is set in every mode
            check_question(settings, self.texts.profile)
            options["critic"] = self.critics.get(settings.critic)
        options["how_to_check"] = self.texts.profile.how_to_check
        options["critic_fallback"] = settings.critic_fallback if self.protocol.reflects else "keep"
        return Job(prompt, system, settings, height, width, task, tuple(given), texts, seed, **options)

    def _size(self, settings: Settings, given: Sequence[Image]) -> tuple[int, int]:
        """Height and width to draw: as set, or those of the last given image, or the model's own."""
        width, height = settings.width or self.usual.width, settings.height or self.usual.height
        if given and settings.width is None:
            width, height = given[-1].size
        assert height is not None and width is not None
        self.sizes.check(width, height)
        return height, width

    def trajectory(self, job: Job, steps: Sequence[Step]) -> Trajectory:
        """What a job's steps became."""
        turns = [Turn(None, image, given=True) for image in job.images]
        turns += [_turn(job, index, step) for index, step in enumerate(steps, len(turns))]
        settings = replace(job.settings, height=job.height, width=job.width).to_dict()
        last = steps[-1]
        return Trajectory(
            job.prompt,
            job.settings.mode if job.task == "generate" else job.task,
            job.seed,
            self.model,
            settings,
            turns,
            stopped=last.image is None,
            protocol=self.protocol.name,
            stop_reason=last.stop,
            loaded=dict(self.loaded),
            notes=notes_on(job.prompt, self.texts.profile.prompt_notes) if job.task in ("generate", "improve") else [],
        )


def _turn(job: Job, index: int, step: Step) -> Turn:
    seconds: dict[str, Any] = {}
    texts = {"reflecting": step.reflection, "thinking": step.thinking}
    written = {stage: text for stage, text in texts.items() if isinstance(text, Written)}
    seconds |= {stage: text.seconds for stage, text in written.items()}
    drawn_as = index if step.reflection is None else 0  # from a new thinking: as first images are
    if step.critique.critic:
        seconds["critic"] = step.critique.seconds
    if step.image is not None:
        seconds["drawing"] = step.image.seconds
    return Turn(
        thinking=None if step.thinking is None else step.text,
        image=step.image.image if step.image else None,
        settings=job.settings.draw(drawn_as).to_dict() if step.image else {},
        seconds=seconds,
        tokens=sum(len(text.ids) for text in written.values()),
        details=step.details,
        critic=step.critique.to_dict(),
        reflection=step.reflection.text if isinstance(step.reflection, Written) else step.reflection,
    )
