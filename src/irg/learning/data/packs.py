"""Where a trainer's packs come from, memory or a stream, and the reading of their images."""

from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor

from irg.learning.data.in_memory import TrajectoryData
from irg.learning.data.packing import Attention, Pack, Packer, Packs
from irg.learning.data.rows import Rejections
from irg.learning.data.stream import StreamPacks
from irg.learning.parallel import Ranks
from irg.learning.recipe import TrainRecipe
from irg.model.network.autoencoder import Autoencoder
from irg.model.network.config import ModelConfig
from irg.model.network.flex_attention import FlexAttention
from irg.model.network.packed_attention import PackedAttention
from irg.model.network.shared_prefix_attention import SharedPrefixAttention
from irg.model.weights.profile import Profile
from irg.model.weights.tokenizer import TextTokenizer
from irg.sequence.images import patchify

PIXELS_AT_ONCE = 1 << 21  # that the autoencoder reads in one call: its first layers hold 128 numbers for each


def attention_of(recipe: TrainRecipe, device: torch.device) -> Attention:
    """The attention that packs are planned for.

    Raises:
        ValueError: the device can't do it.
    """
    kind = recipe.parallel.attention
    if kind == "flex" and device.type == "cpu":
        raise ValueError("parallel.attention flex cannot train on a CPU: set it to auto, shared or dense")
    if kind == "auto":
        kind = "flex" if device.type == "cuda" else "shared"
    return {"flex": FlexAttention, "shared": SharedPrefixAttention, "dense": PackedAttention}[kind]


def build_packs(
    recipe: TrainRecipe,
    config: ModelConfig,
    tokenizer: TextTokenizer,
    profile: Profile,
    autoencoder: Autoencoder,
    ranks: Ranks,
    quiet: bool,
) -> tuple[TrajectoryData | None, Packs]:
    """The recipe's rows, if they are held in memory, and its packs.

    Raises:
        ValueError: the data is not there, is of another kind, or cannot serve the mixture.
    """
    attention, complete = attention_of(recipe, ranks.device), ranks.mesh is not None
    rejections = Rejections(Path(recipe.out) / f"rejected-{ranks.rank}.jsonl")
    if recipe.stream:
        lanes = ranks.world * recipe.parallel.accumulate
        return None, StreamPacks(recipe, config, tokenizer, profile, rejections, lanes, complete, attention)
    cache = Path(recipe.cache) if recipe.cache else Path(recipe.out) / "cache"
    data = TrajectoryData(recipe.data, tokenizer, config, profile, autoencoder, cache, quiet, rejections)
    if recipe.validate_every:
        data.hold_out(recipe.validation_rows)
    packer = Packer(
        data,
        config.grammar,
        recipe.mixture,
        recipe.dropout,
        recipe.seed,
        recipe.tokens_per_pack,
        recipe.max_tokens_per_sample,
        recipe.noise_copies,
        complete,
        attention,
    )
    return data, packer


@torch.no_grad()
def encode(
    pack: Pack, autoencoder: Autoencoder, config: ModelConfig, generator: torch.Generator, sample: bool = False
) -> None:
    """Let the autoencoder read a pack's waiting images; sets ``clean_GD``. Each image is read once, however often
    it stands in the pack. With ``sample`` the latents are drawn from the posterior instead of being its mean."""
    if pack.unread is None:
        return
    weight = next(autoencoder.parameters())
    by_size: dict[torch.Size, list[int]] = defaultdict(list)
    for index, pixels in enumerate(pack.unread.pixels):
        by_size[pixels.shape].append(index)
    tokens: dict[int, Tensor] = {-1: torch.zeros(1, config.latent_values, device=weight.device)}
    for (_, height, width), members in by_size.items():
        count = max(1, PIXELS_AT_ONCE // (height * width))
        for start in range(0, len(members), count):
            some = members[start : start + count]
            x_N3HW = torch.stack([pack.unread.pixels[i] for i in some]).to(weight.device, weight.dtype)
            shape = (
                len(some),
                config.autoencoder.z_channels,
                height // config.autoencoder.downsample,
                width // config.autoencoder.downsample,
            )
            eps = torch.randn(shape, generator=generator).to(x_N3HW) if sample else None
            for i, latents in zip(some, autoencoder.encode(x_N3HW, eps).to(torch.float32), strict=True):
                tokens[i] = patchify(latents, config.latent_patch_size)
    pack.clean_GD, pack.unread = torch.cat([tokens[i] for i in pack.unread.of_block]), None
