"""The loop's steps as nodes. They pass a context: all that was written and drawn so far, as a value, so that several
nodes may go on from one."""

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from . import host, inputs
from .convert import Autoencoder, to_batch, to_latent, to_pillow
from .loading import LocalModel
from .previews import Previews

if TYPE_CHECKING:
    from torch import Tensor

    from irg.reasoning.stepwise import PausedRequest, Steps

CATEGORY = "IRG/steps"


class Think(io.ComfyNode):
    """Begins: the model thinks about the prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IRGThink",
            display_name="IRG Think",
            category=CATEGORY,
            description="The first step: the model thinks about the prompt in text.",
            inputs=[
                inputs.Model.Input("model"),
                inputs.prompt(),
                inputs.mode(),
                inputs.size(),
                inputs.max_tokens(),
                inputs.temperature(),
                inputs.seed(),
                inputs.critic(),
                inputs.negative_prompt(),
                inputs.own_text("thinking"),
                inputs.revise(),
            ],
            outputs=[
                inputs.Context.Output("new_context", display_name="context"),
                io.String.Output("thinking", display_name="thinking"),
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
        model: LocalModel,
        prompt: str,
        mode: str,
        size: str,
        max_tokens: int,
        temperature: float,
        seed: int,
        critic: str = "",
        negative_prompt: str = "",
        own_text: str = "",
        revise: str = inputs.AUTO,
    ) -> io.NodeOutput:
        from irg.reasoning.stepwise import start

        model.check_critic(critic)
        options = inputs.given(mode=mode, size=size, negative_prompt=negative_prompt, critic=critic, revise=revise)
        texts = inputs.given(max_tokens=max_tokens, temperature=temperature, text=own_text)
        begun = start(model.pipe, prompt, seed, **options)
        context = await _taken(begun, begun.write(**texts))
        return io.NodeOutput(context, context.text)


class StartFromImage(io.ComfyNode):
    """Begins with an image of one's own, in the place of thinking and drawing."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IRGStartFromImage",
            display_name="IRG Start from Image",
            category=CATEGORY,
            description="Begins with an image of your own; Look and Reflect goes on from it.",
            inputs=[
                inputs.Model.Input("model"),
                io.Image.Input("image"),
                inputs.prompt(),
                inputs.seed(),
                inputs.critic(),
                inputs.negative_prompt(),
                inputs.revise(),
            ],
            outputs=[inputs.Context.Output("new_context", display_name="context")],
        )

    @classmethod
    def validate_inputs(cls, prompt: str | None = None, critic: str | None = None) -> bool | str:
        return inputs.check_values(prompt, critic=critic)

    @classmethod
    def execute(
        cls,
        model: LocalModel,
        image: "Tensor",
        prompt: str,
        seed: int,
        critic: str = "",
        negative_prompt: str = "",
        revise: str = inputs.AUTO,
    ) -> io.NodeOutput:
        from irg.reasoning.stepwise import start

        model.check_critic(critic)
        options = inputs.given(negative_prompt=negative_prompt, critic=critic, revise=revise)
        return io.NodeOutput(start(model.pipe, prompt, seed, image=to_pillow(image), **options))


class Draw(io.ComfyNode):
    """Draws the first image from the thinking."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _drawing("IRGDraw", "IRG Draw", "Draws the first image from the thinking.", [])

    @classmethod
    async def execute(
        cls, context: "PausedRequest", steps: int, guidance: float, seed: int, reseed: bool
    ) -> io.NodeOutput:
        if context.turn:
            raise ValueError("this context has an image already: take IRG Look and Reflect, then IRG Redraw")
        return await _drawn(context, inputs.given(steps=steps, cfg_text_scale=guidance), seed, reseed)


class Reflect(io.ComfyNode):
    """The model looks at the newest image and writes what to do better."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IRGReflect",
            display_name="IRG Look and Reflect",
            category=CATEGORY,
            description="The model (or the critic) looks at the newest image and writes what to do better.",
            inputs=[
                inputs.Context.Input("context"),
                inputs.max_tokens(),
                inputs.temperature(),
                inputs.seed("Counts with reseed."),
                inputs.reseed(),
                inputs.own_text("reflection"),
            ],
            outputs=[
                inputs.Context.Output("new_context", display_name="context"),
                io.String.Output("reflection", display_name="reflection"),
                io.Boolean.Output(
                    "done", display_name="done", tooltip="Nothing is left to improve; IRG Redraw then keeps the image."
                ),
            ],
        )

    @classmethod
    async def execute(
        cls,
        context: "PausedRequest",
        max_tokens: int,
        temperature: float,
        seed: int,
        reseed: bool,
        own_text: str = "",
    ) -> io.NodeOutput:
        if not context.turn:
            raise ValueError("there is no image to look at yet: take IRG Draw first")
        texts = inputs.given(max_tokens=max_tokens, temperature=temperature, text=own_text)
        context = await _taken(context, context.write(**texts, seed=seed if reseed else None))
        return io.NodeOutput(context, context.text, context.ended)


class Redraw(io.ComfyNode):
    """Draws a better image from the reflection."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        description = "Draws a better image from the reflection; where nothing is left to improve, the image stays."
        return _drawing("IRGRedraw", "IRG Redraw", description, [inputs.image_guidance()])

    @classmethod
    async def execute(
        cls,
        context: "PausedRequest",
        steps: int,
        guidance: float,
        image_guidance: float,
        seed: int,
        reseed: bool,
    ) -> io.NodeOutput:
        if not (context.turn and (context.draws_next or context.ended)):
            raise ValueError("there is no reflection to draw from yet: take IRG Look and Reflect first")
        options = inputs.given(steps=steps, cfg_text_scale=guidance, cfg_img_scale=image_guidance)
        return await _drawn(context, options, seed, reseed)


def _drawing(node_id: str, name: str, description: str, more: list[io.Input]) -> io.Schema:
    return io.Schema(
        node_id=node_id,
        display_name=name,
        category=CATEGORY,
        description=description,
        inputs=[
            inputs.Context.Input("context"),
            inputs.steps(),
            inputs.guidance(),
            *more,
            inputs.seed("Counts with reseed."),
            inputs.reseed(),
        ],
        outputs=[
            inputs.Context.Output("new_context", display_name="context"),
            io.Image.Output("image", display_name="image"),
            io.Latent.Output("latent", display_name="latent"),
        ],
    )


async def _drawn(context: "PausedRequest", options: dict[str, Any], seed: int, reseed: bool) -> io.NodeOutput:
    """The outputs of a node that draws."""
    settings = context.job.settings.draw(context.turn)
    updates = options.get("num_timesteps", settings.num_timesteps) - 1
    context = await _taken(context, context.draw(**options, seed=seed if reseed else None), updates)
    assert context.image is not None
    image = to_batch([context.image])
    if context.drawn:
        latent = to_latent(context.drawn[-1].latents, context.pipe)
    else:  # a given image that needs nothing
        latent = {"samples": Autoencoder(context.pipe).encode(image)}
    return io.NodeOutput(context, image, latent)


async def _taken(before: "PausedRequest", steps: "Steps", updates: int = 1) -> "PausedRequest":
    """Take a step, with progress, previews and the finished image on the node."""
    from irg.engine.events import DenoiseStep, ImageDone

    progress, previews = host.Progress([updates]), Previews(before.pipe, before.job, [updates])
    try:
        while True:
            event = next(steps)
            host.stop_if_interrupted()
            if isinstance(event, DenoiseStep):
                await progress.show(0, event.step, previews.picture(event, 0))
            elif isinstance(event, ImageDone):
                await progress.show(1, 0, event.image)
    except StopIteration as stop:
        return stop.value
    finally:
        steps.close()
