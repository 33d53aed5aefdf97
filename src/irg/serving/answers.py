"""What answers hold: OpenAI's fields, and one field ``irg`` with everything that the loop did."""

import time
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from irg.reasoning.pipeline import IRGPipeline
from irg.reasoning.protocols.base import Job
from irg.results.trajectory import Trajectory
from irg.serving.costs import image_tokens, output_tokens


class InputDetails(BaseModel):
    image_tokens: int
    text_tokens: int


class Usage(BaseModel):
    """Tokens of prompts and given images, and of texts and images made."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: InputDetails
    total_tokens: int


class TurnAnswer(BaseModel):
    """One turn: what was written, and whether an image followed."""

    thinking: str | None = None
    reflection: str | None = None
    tokens: int
    seconds: dict[str, float]
    image: bool
    given: bool
    critic: dict[str, Any] | None = None
    details: dict[str, Any] | None = None


class IrgAnswer(BaseModel):
    """How a result came about."""

    seed: int
    mode: str
    protocol: str
    size: str
    stop_reason: str
    notes: list[str] | None = None
    turns: list[TurnAnswer]
    best: int | None = None
    search: dict[str, Any] | None = None
    settings: dict[str, Any]


class ImageAnswer(BaseModel):
    """One image."""

    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str | None = None
    irg: IrgAnswer


class ImagesAnswer(BaseModel):
    """The answer of ``/v1/images/generations`` and ``/v1/images/edits``."""

    created: int
    data: list[ImageAnswer]
    background: str = "opaque"
    output_format: str
    quality: str
    size: str
    usage: Usage


def now() -> int:
    """Seconds since 1970."""
    return int(time.time())


def size_of(job: Job) -> str:
    return f"{job.width}x{job.height}"


def irg_answer(job: Job, trajectory: Trajectory) -> IrgAnswer:
    """The field ``irg`` of a result."""
    turns = [
        TurnAnswer(
            thinking=turn.thinking,
            tokens=turn.tokens,
            seconds={stage: round(seconds, 4) for stage, seconds in turn.seconds.items()},
            image=turn.image is not None,
            given=turn.given,
            critic=turn.critic,
            details=turn.details or None,
            reflection=turn.reflection,
        )
        for turn in trajectory.turns
    ]
    return IrgAnswer(
        seed=trajectory.seed,
        mode=trajectory.mode,
        protocol=trajectory.protocol,
        size=size_of(job),
        stop_reason=trajectory.stop_reason or "rounds",
        notes=trajectory.notes or None,
        turns=turns,
        best=trajectory.best,
        search=None if trajectory.search is None else trajectory.search.to_dict(),
        settings=trajectory.settings,
    )


def texts_of(trajectory: Trajectory) -> str:
    """All that the model wrote, thinking first."""
    return "\n".join(text for turn in trajectory.turns for text in turn.texts)


def answer_of(trajectory: Trajectory) -> str | None:
    """What the model said instead of drawing; None if it drew."""
    return None if trajectory.image is not None else (trajectory.turns[-1].thinking or "")


def revised_prompt(trajectory: Trajectory) -> str | None:
    """The prompt and, in the lines after it, what the model wrote; None where it wrote nothing."""
    texts = texts_of(trajectory)
    return f"{trajectory.prompt}\n{texts}" if texts else None


def usage(pipe: IRGPipeline, jobs: Sequence[Job], trajectories: Sequence[Trajectory]) -> Usage:
    """What a request counts: its prompt and images once, everything that was made."""
    assert pipe.engine.tokenizer is not None
    text = len(pipe.engine.tokenizer.encode(jobs[0].prompt))
    given = sum(image_tokens(*image.size, pipe.config) for image in jobs[0].images)
    made = [output_tokens(trajectory, pipe.config) for trajectory in trajectories]
    texts, images = sum(one for one, _ in made), sum(two for _, two in made)
    return Usage(
        input_tokens=text + given,
        input_tokens_details=InputDetails(image_tokens=given, text_tokens=text),
        output_tokens=texts + images,
        output_tokens_details=InputDetails(image_tokens=images, text_tokens=texts),
        total_tokens=text + given + texts + images,
    )
