"""From a recipe to a model that is ready to train: loaded, frozen, adapted, recomputing, compiled, sharded."""

import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from irg.learning import parallel
from irg.learning.recipe import Images, TrainRecipe
from irg.model.network.config import ModelConfig
from irg.model.network.lora import LoraConfig, add_adapters, target_layers
from irg.model.network.unified import UnifiedModel
from irg.model.weights.checkpoint import CheckedFolder, LoadedModel, check_folder, load_model
from irg.model.weights.folders import model_folder
from irg.model.weights.quantize import stored_quantization

NF4_BLOCK = 64
PARTS = ("vit_model", "connector", "und", "gen", "embed_tokens")
GENERATION = ("vae2llm", "llm2vae", "time_embedder", "latent_pos_embed")
"""The modules beside the decoder's layers that only images being drawn, or read as latents, go through."""


def freeze(model: UnifiedModel, parts: tuple[str, ...]) -> None:
    """Take parts out of training by name.

    ``vit_model``, ``connector`` and ``embed_tokens`` are modules. ``und`` is the understanding expert, the decoder's
    layers and last norm of texts and ViT patches; ``gen`` is the whole generation side: the generation expert with its
    last norm, and what takes latents in and velocities out.

    Raises:
        ValueError: an unknown part.
    """
    for part in parts:
        if part not in PARTS:
            raise ValueError(f"frozen: unknown part {part!r}; the parts are {', '.join(PARTS)}")
        for name, parameter in model.named_parameters():
            if part == _expert(name) or part in name.split("."):
                parameter.requires_grad_(False)


def _expert(name: str) -> str:
    """The expert that a parameter belongs to, ``und`` or ``gen``; empty for what is neither's."""
    if "moe_gen" in name or name.partition(".")[0] in GENERATION:
        return "gen"
    return "und" if name.startswith(("language_model.model.layers.", "language_model.model.norm.")) else ""


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter of what a run trains.

    Raises:
        ValueError: that is nothing.
    """
    found = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not found:
        raise ValueError("frozen: nothing is left to train")
    return found


def adapter_of(recipe: TrainRecipe) -> LoraConfig | None:
    """The recipe's adapters, if it trains any."""
    lora = recipe.lora
    return LoraConfig(lora.rank, lora.alpha or float(lora.rank), lora.targets) if lora.rank else None


def training_config(config: ModelConfig, images: Images) -> ModelConfig:
    """The model's configuration with the recipe's image sizes.

    Raises:
        ValueError: sizes that the model's position tables do not cover, or a minimum above its maximum.
    """

    def bounded(name: str, low: int | None, high: int | None, limit: int) -> ModelConfig:
        rule = getattr(config, f"{name}_resize")
        rule = replace(rule, min_size=low or rule.min_size, max_size=high or rule.max_size)
        if not 0 < rule.min_size <= rule.max_size <= limit:
            raise ValueError(
                f"images: {name}_min {rule.min_size}, {name}_max {rule.max_size} must be in order and at most {limit}"
            )
        return replace(config, **{f"{name}_resize": rule})

    config = bounded("vae", images.vae_min, images.vae_max, config.max_image_size)
    limit = config.vit_max_num_patch_per_side * config.vit.patch_size
    return bounded("vit", images.vit_min, images.vit_max, limit)


def check_trainable(folder: Path) -> CheckedFolder:
    """Hold a model folder's files against its configuration, by their headers, before it is trained from.

    Raises:
        ValueError: the folder is no model, or its weights are quantized.
    """
    checked = check_folder(folder)
    if (kind := stored_quantization(checked.entries)) is not None:
        raise ValueError(
            f"{checked.weights_file} is quantized to {kind} and can't be trained: start from the full weights "
            "(lora.base nf4 holds them in 4 bits while adapters are trained)"
        )
    return checked


def start_folder(recipe: TrainRecipe, ranks: parallel.Ranks) -> Path:
    """The folder of the recipe's model: a bundled one by name, a path, or a hub model, which is downloaded once.

    The main process downloads before the others ask, so that those of its machine find it in the cache.

    Raises:
        ValueError: there is no such model, or it can't be downloaded.
    """
    folder, problem = None, None
    if ranks.main:
        try:
            folder = model_folder(recipe.model, say=print)
        except ValueError as error:
            problem = str(error)
    if found := ranks.gather(problem)[0]:
        raise ValueError(found)
    return folder or model_folder(recipe.model)


def build(recipe: TrainRecipe, folder: Path, ranks: parallel.Ranks) -> LoadedModel:
    """Load the recipe's model from its folder and make it ready. Parallelism stays outside the network's code.

    Raises:
        ValueError: the folder is no model, or ``frozen`` or ``lora`` name what it has not.
    """
    whole = ranks.mesh is None and not recipe.lora.rank
    # Sharded weights are mapped from the file as they are, and become float32 group by group, a shard each.
    checked = check_trainable(folder)
    loaded = load_model(checked, dtype=torch.float32 if whole else None, device=ranks.device if whole else "cpu")
    model = loaded.model.train()
    low = recipe.parallel.precision == "bfloat16"
    loaded.autoencoder.to(ranks.device, torch.bfloat16 if low and ranks.device.type == "cuda" else torch.float32)
    loaded.autoencoder.requires_grad_(False)
    adapter = adapter_of(recipe)
    if adapter is not None:
        _adapt(model, adapter, recipe, ranks)
    freeze(model, recipe.frozen)
    trained(model)
    parallel.recompute(model, recipe.parallel.recompute)
    if recipe.parallel.compile:
        for layer in model.language_model.model.layers:
            layer.compile()
    if ranks.mesh is not None:
        # Adapters are sharded, the weights under them whole on every rank: gathered never, quantized if so wished.
        still = {p for p in model.parameters() if not p.requires_grad} if adapter else None
        parallel.shard(model, ranks, recipe.parallel.precision, still)
    return loaded


def _adapt(model: UnifiedModel, adapter: LoraConfig, recipe: TrainRecipe, ranks: parallel.Ranks) -> None:
    base = recipe.lora.base
    model.to(ranks.device, torch.float32 if base == "float32" else torch.bfloat16)
    add_adapters(model, adapter, recipe.seed)
    if base == "nf4":
        quantize(model, adapter)


def quantize(model: UnifiedModel, adapter: LoraConfig) -> None:
    """Hold the frozen weights under adapters in 4 bits (NF4, blocks of 64; Dettmers et al. 2023).

    Raises:
        ValueError: torchao is missing, or a layer's size is no multiple of a block.
    """
    try:
        try:
            from torchao.quantization import NF4Tensor
        except ImportError:  # before 0.18
            from torchao.dtypes.nf4tensor import NF4Tensor
    except ImportError:
        raise ValueError("lora.base nf4 needs torchao: pip install 'irg[quant]'") from None
    for path, layer in list(target_layers(model, adapter.targets)):
        if layer.weight.numel() % NF4_BLOCK:
            raise ValueError(f"lora.base nf4: {path} has {layer.weight.numel()} weights, no multiple of {NF4_BLOCK}")
        scales = math.gcd(layer.weight.numel() // NF4_BLOCK, 256)
        held = NF4Tensor.from_tensor(layer.weight.detach(), NF4_BLOCK, scales)
        layer.weight = nn.Parameter(held, requires_grad=False)
