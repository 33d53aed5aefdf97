"""The whole loop as one node."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io
from PIL.Image import Image

from . import host, inputs
from .convert import to_batch, to_latent, to_pillow
from .loading import LocalModel
from .previews import Previews
from .remote import RemoteServer

if TYPE_CHECKING:
    from torch import Tensor

    from irg.reasoning.protocols.base import Task


@dataclass
class Result:
    """What a loop gave.

    Attributes:
        images: all that were drawn, in order.
        texts: what was written before each image: the thinking, then the reflections, each with the new thinking after
            it, if there is one.
        first: the image that the loop began with, given or drawn.
    """

    images: list[Image] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    first: Image | None = None
    latent: "dict[str, Tensor] | None" = None


@dataclass(frozen=True)
class Shown:
    """Progress: ``step`` updates of the image number ``turn`` are done; ``image``: it, or one that was finished."""

    turn: int
    step: int
    image: Image | None = None


class Generate(io.ComfyNode):
    """Prompt to images: think, draw, then look, reflect and draw again."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IRGGenerate",
            display_name="IRG Generate",
            category="IRG",
            description="The whole loop: thinks, draws, looks at the image, reflects, and draws a better one.",
            inputs=[
                io.MultiType.Input("model", [inputs.Model, inputs.RemoteModel]),
                inputs.prompt(),
                inputs.mode(),
                io.Int.Input("rounds", default=1, min=1, max=100, tooltip="Of looking and drawing again, in mode irg."),
                inputs.size(),
                inputs.steps(),
                inputs.guidance("guidance", "the first image"),
                inputs.guidance("redraw_guidance", "later images"),
                inputs.image_guidance(),
                inputs.temperature(),
                inputs.seed(),
                inputs.critic(),
                inputs.negative_prompt(),
                inputs.revise(),
                io.Image.Input("image", optional=True, tooltip="A first image to improve; without it one is drawn."),
            ],
            outputs=[
                io.Image.Output("last_image", display_name="image", tooltip="The last image."),
                io.Image.Output("first_image", display_name="first_image"),
                io.Image.Output("images", display_name="images", tooltip="All images that were drawn, as a batch."),
                io.Latent.Output("latent", display_name="latent", tooltip="Of the last image; a server gives none."),
                io.String.Output("thinking", display_name="thinking"),
                io.String.Output(
                    "reflection", display_name="reflection", tooltip="All later texts, with empty lines between them."
                ),
            ],
        )

    @classmethod
    def validate_inputs(
        cls, prompt: str | None = None, mode: str | None = None, size: str | None = None, critic: str | None = None
    ) -> bool | str:
        return inputs.check_values(prompt, mode, size, critic)

    @classmethod
    async def execute(
        cls,
        model: LocalModel | RemoteServer,
        prompt: str,
        mode: str,
        rounds: int,
        size: str,
        steps: int,
        guidance: float,
        redraw_guidance: float,
        image_guidance: float,
        temperature: float,
        seed: int,
        critic: str = "",
        negative_prompt: str = "",
        revise: str = inputs.AUTO,
        image: "Tensor | None" = None,
    ) -> io.NodeOutput:
        later = {
            "improve_steps": steps,
            "improve_cfg_text_scale": redraw_guidance,
            "improve_cfg_img_scale": image_guidance,
            "rounds": rounds,
            "revise": revise,
        }
        first = {"mode": mode, "steps": steps, "cfg_text_scale": guidance}
        both = {"size": size, "temperature": temperature, "negative_prompt": negative_prompt}
        loops = later if mode == "irg" or image is not None else {}
        both["critic"] = critic if loops or critic != "self" else ""
        options = inputs.given(**both, **loops, **({} if image is not None else first))
        source = None if image is None else to_pillow(image)
        result = Result(first=source)
        if isinstance(model, RemoteServer):
            events = _remote(model, prompt, seed, options, source, result)
        else:
            model.check_critic(critic)
            events = _local(model, prompt, seed, options, source, result)
        progress: host.Progress | None = None
        async for event in events:
            host.stop_if_interrupted()
            if isinstance(event, host.Progress):
                progress = event
            elif progress is not None and isinstance(event, Shown):
                await progress.show(event.turn, event.step, event.image)
        return _output(result)


def _output(result: Result) -> io.NodeOutput:
    """The node's outputs.

    Raises:
        ValueError: the model drew nothing.
    """
    first = result.first or (result.images[0] if result.images else None)
    if first is None:
        raise ValueError(f"the model drew no image; it wrote: {' '.join(result.texts)[:500]}")
    thinking, *reflections = result.texts or [""]
    latent: Any = result.latent
    if latent is None:
        from comfy_execution.graph_utils import ExecutionBlocker

        latent = ExecutionBlocker("IRG Generate: there is no latent: none comes from a server")
    images = result.images or [first]
    return io.NodeOutput(
        to_batch(images[-1:]), to_batch([first]), to_batch(images), latent, thinking, "\n\n".join(reflections)
    )


async def _local(
    model: LocalModel, prompt: str, seed: int, options: Mapping[str, Any], image: Image | None, result: Result
) -> AsyncIterator["host.Progress | Shown | None"]:
    """Run the loop in this process; fills ``result``."""
    from irg.reasoning.events import DenoiseStep, Failed, Finished, ImageDone
    from irg.serving.costs import updates

    pipe = model.pipe
    usual = pipe.defaults if image is None else pipe.defaults.sized_by_image()
    settings = pipe.with_options(usual, options)
    task: Task = "generate" if image is None else "improve"
    images = [] if image is None else [image]
    job = pipe.jobs.make(prompt, settings, seed, task, images)
    given, drawn = len(images), updates(job)
    yield host.Progress(drawn)
    previews = Previews(pipe, job, drawn)
    stream = pipe.stream([prompt], [seed], settings, task=task, images=[images] if images else [])
    try:
        for event in stream:
            if isinstance(event, DenoiseStep):
                turn = event.turn - given
                yield Shown(turn, event.step, previews.picture(event, turn))
            elif isinstance(event, ImageDone):
                result.images.append(event.image)
                result.latent = to_latent(event.latents, pipe)
                yield Shown(event.turn - given + 1, 0, event.image)
            elif isinstance(event, Failed):
                raise event.error
            elif isinstance(event, Finished):
                turns = event.trajectory.turns
                result.texts = ["\n\n".join(turn.texts) for turn in turns]
                result.first = turns[0].image
            else:
                yield None
    finally:
        stream.close()


async def _remote(
    model: RemoteServer, prompt: str, seed: int, options: Mapping[str, Any], image: Image | None, result: Result
) -> AsyncIterator["host.Progress | Shown | None"]:
    """Let a server run the loop; fills ``result``."""
    rounds = options.get("rounds", 1) if image is not None or options["mode"] == "irg" else 0
    count = rounds + (image is None)
    yield host.Progress([1] * count)
    async for event in model.stream(prompt, seed, options, image, count):
        if event is None:
            yield None
            continue
        if event.preview is not None:
            yield Shown(len(result.images), 0, event.preview)
        if event.image is not None:
            result.images.append(event.image)
            yield Shown(len(result.images), 0, event.image)
        if event.texts is not None:
            result.texts = event.texts
