"""How much work a job is, to let short ones go first, and how many tokens a request is charged."""

from irg.model.network.config import ModelConfig
from irg.reasoning.protocols.base import Job, draws_again
from irg.results.trajectory import Trajectory

_USUAL_TEXT = 300
"""Tokens that a text is expected to have, where more are allowed."""


def updates(job: Job) -> list[int]:
    """Updates of each image that a job draws at most."""
    settings = job.settings
    if job.task == "ask":
        return []
    first = [settings.initial.num_timesteps - 1] if job.task == "generate" else []
    if not draws_again(job.task, settings.mode):
        return first or [settings.improving.num_timesteps - 1]
    again = settings.draw(0 if settings.revise == "thinking" else 1)  # from a new thinking: as first images are
    return first + [again.num_timesteps - 1] * settings.rounds


def work(job: Job, config: ModelConfig) -> float:
    """A job's work in tokens that go through the network, at most: images step by step in up to three branches, texts
    token by token (a token alone costs as much as many together)."""
    settings = job.settings
    drawn = updates(job)
    branches = 1 + (settings.initial.cfg_text_scale > 1) + (settings.initial.cfg_img_scale > 1)
    tokens = latent_tokens(job.width, job.height, config)
    texts = max(1, len(drawn)) if settings.mode != "direct" or job.task != "generate" else 0
    return 1.0 + tokens * branches * sum(drawn) + 20.0 * texts * min(settings.max_think_tokens, _USUAL_TEXT)


def latent_tokens(width: int, height: int, config: ModelConfig) -> int:
    """Tokens of an image that is drawn."""
    return (height // config.image_stride) * (width // config.image_stride)


def image_tokens(width: int, height: int, config: ModelConfig) -> int:
    """Tokens of an image that is looked at: through the autoencoder and the ViT."""
    latents = latent_tokens(*config.vae_resize.size(width, height), config)
    wide, high = config.vit_resize.size(width, height)
    return latents + (wide // config.vit.patch_size) * (high // config.vit.patch_size)


def output_tokens(trajectory: Trajectory, config: ModelConfig) -> tuple[int, int]:
    """(tokens of texts, tokens of images) that a request has made."""
    drawn = [turn.image for turn in trajectory.turns if turn.image is not None and not turn.given]
    return trajectory.tokens, sum(latent_tokens(image.width, image.height, config) for image in drawn)
