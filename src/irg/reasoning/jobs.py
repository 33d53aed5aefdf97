"""From a request to its job, checked, and from a job's steps to its trajectory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from PIL.Image import Image

from irg.engine.ops import Written
from irg.model.network.config import ModelConfig
from irg.reasoning.critique import Critics
from irg.reasoning.protocols.base import Job, Protocol, Step, Task
from irg.reasoning.protocols.selection import ProtocolTexts
from irg.reasoning.settings import Settings, check_prompt
from irg.reasoning.sizes import ImageSizes
from irg.results.trajectory import Trajectory, Turn


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
        self, prompt: str, settings: Settings, seed: int, task: Task = "generate", images: Sequence[Image] = ()
    ) -> Job:
        """The job of a request. Official texts that it needs are read now.

        Raises:
            ValueError: the prompt or the size is not usable, the protocol has no such request, or a text can't be had.
        """
        check_prompt(prompt)
        height, width = self._size(settings, images)
        self.protocol.check(replace(settings, height=height, width=width), self.usual, task)
        texts = self.texts.read(task, settings.mode)
        system = self.texts.system(task, texts)
        options = self.protocol.job_options(self.config)
        options["critic"] = self.critics.get(settings.critic)
        options["critic_fallback"] = settings.critic_fallback if self.protocol.reflects else "keep"
        return Job(prompt, system, settings, height, width, task, tuple(images), texts, seed, **options)

    def _size(self, settings: Settings, images: Sequence[Image]) -> tuple[int, int]:
        """Height and width to draw: as set, or as the last given image is brought to, or the model's own."""
        own = (self.usual.height, self.usual.width)
        height, width = settings.height or own[0], settings.width or own[1]
        if images and (height, width) == own:
            rule = self.protocol.job_options(self.config).get("vae_resize") or self.config.vae_resize
            width, height = rule.size(*images[-1].size)
        assert height is not None and width is not None
        self.sizes.check(width, height)
        return height, width

    def trajectory(self, job: Job, steps: Sequence[Step]) -> Trajectory:
        """What a job's steps became."""
        turns = []
        if job.task == "improve":
            turns.append(Turn(None, job.images[0], given=True))
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
        )


def _turn(job: Job, index: int, step: Step) -> Turn:
    seconds: dict[str, Any] = {}
    written = step.thinking if isinstance(step.thinking, Written) else None
    if written is not None:
        seconds["thinking"] = written.seconds
    if step.critique.critic:
        seconds["critic"] = step.critique.seconds
    if step.image is not None:
        seconds["drawing"] = step.image.seconds
    return Turn(
        thinking=None if step.thinking is None else step.text,
        image=step.image.image if step.image else None,
        settings=job.settings.draw(index).to_dict() if step.image else {},
        seconds=seconds,
        tokens=len(written.ids) if written is not None else 0,
        details=step.details,
        critic=step.critique.to_dict(),
    )
