"""Model folders with random weights, for tests and benchmarks, written tensor by tensor.

The numbers of a tensor follow from the seed and its name alone. A byte-level tokenizer goes with them, so the folder
runs: it writes random text and draws noise.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from irg import files
from irg.model.network.autoencoder import FluxConfig, build_autoencoder
from irg.model.network.config import ModelConfig
from irg.model.network.embeddings import sincos_rows
from irg.model.network.unified import UnifiedModel
from irg.model.weights.checkpoint import AUTOENCODER, WEIGHTS, expected
from irg.model.weights.config_files import CONFIG, bagel_sections, to_sections
from irg.model.weights.convert import FolderLayout
from irg.model.weights.shards import Planned, write_weights
from irg.model.weights.tokenizer import SPECIAL_NAMES, TOKENIZER

_PIECE = 1 << 24  # numbers drawn at a time


def narrower(config: ModelConfig, factor: int) -> ModelConfig:
    """The same network with every width, and the vocabulary, divided by ``factor``; depths and heads stay.

    Raises:
        ValueError: a width can't be divided so.
    """
    if factor == 1:
        return config
    decoder, vit, ae = config.decoder, config.vit, config.autoencoder
    vit_width = _divided("the ViT's hidden_size", vit.hidden_size, factor)
    heads = next(h for h in range(vit.num_attention_heads, 0, -1) if vit_width % h == 0)
    vocab = max(decoder.vocab_size // factor, 260 + 4)
    if isinstance(ae, FluxConfig):
        ch = _divided("the autoencoder's ch", ae.ch, factor)
        ae = replace(ae, ch=ch, group_norm_groups=math.gcd(ch, ae.group_norm_groups))
    return replace(
        config,
        decoder=replace(
            decoder,
            vocab_size=vocab,
            hidden_size=_divided("hidden_size", decoder.hidden_size, factor),
            intermediate_size=_divided("intermediate_size", decoder.intermediate_size, factor),
        ),
        vit=replace(
            vit,
            hidden_size=vit_width,
            intermediate_size=_divided("the ViT's intermediate_size", vit.intermediate_size, factor),
            num_attention_heads=heads,
        ),
        autoencoder=ae,
        special=replace(config.special, bos=vocab - 4, eos=vocab - 3, start_of_image=vocab - 2, end_of_image=vocab - 1),
    )


def write_folder(
    folder: Path,
    config: ModelConfig,
    layout: FolderLayout = "bagel",
    seed: int | None = 0,
    dtype: torch.dtype = torch.bfloat16,
    shard_bytes: int | None = None,
    started: Callable[[int], None] = lambda _: None,
    wrote: Callable[[int], None] = lambda _: None,
) -> None:
    """Write a whole model folder into an existing, empty one.

    Args:
        seed: of the random weights; None writes zeros, as files with holes that take no disk space.
        dtype: of the unified model's weights; the autoencoder's are float32, as FLUX's are published.
        started, wrote: progress: all bytes to write, then the bytes of each tensor.

    Raises:
        OSError: the folder can't be written.
    """
    with torch.device("meta"):
        model, autoencoder = UnifiedModel(config), build_autoencoder(config.autoencoder)
    weights = list(_planned(model, config, seed, dtype))
    pixels = list(_planned(autoencoder, config, seed, torch.float32))
    name = "ema" if layout == "bagel" else WEIGHTS
    if seed is not None:
        started(sum(tensor.nbytes for tensor in (*weights, *pixels)))
    write_weights(folder, name, weights, shard_bytes, wrote, holes=seed is None)
    write_weights(folder, AUTOENCODER, pixels, None, wrote, holes=seed is None)
    configs = bagel_sections(config) if layout == "bagel" else {CONFIG: to_sections(config)}
    for file, sections in configs.items():
        files.write_json(folder / file, sections)
    (folder / TOKENIZER).write_text(byte_tokenizer(config), encoding="utf-8")


@torch.no_grad()
def random_model(config: ModelConfig, seed: int) -> UnifiedModel:
    """A unified model in memory with the random float32 weights that :func:`write_folder` would write."""
    with torch.random.fork_rng(devices=[]):
        model = UnifiedModel(config)
    tensors = model.state_dict()
    for key, shape in expected(model).items():
        tensors[key].copy_(_tensor(key, shape, config, seed))
    return model.eval()


def byte_tokenizer(config: ModelConfig) -> str:
    """``tokenizer.json`` of a vocabulary of the 256 bytes and the four wrapping tokens.

    Raises:
        ValueError: the vocabulary is too small for that.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    special = dict(zip(SPECIAL_NAMES, vars(config.special).values(), strict=True))
    free = (index for index in range(config.decoder.vocab_size) if index not in special.values())
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = dict(zip(letters, free, strict=False)) | special
    if len(vocab) < len(letters) + len(special):
        raise ValueError(f"a vocabulary of {config.decoder.vocab_size} is too small for 256 bytes and 4 special tokens")
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL_NAMES])
    text: str = tokenizer.to_str(pretty=True)
    return text


def _planned(network: nn.Module, config: ModelConfig, seed: int | None, dtype: torch.dtype) -> Iterator[Planned]:
    for key, shape in expected(network).items():
        yield Planned(key, shape, dtype, lambda k=key, s=shape: _tensor(k, s, config, seed or 0).to(dtype))  # type: ignore[misc]


def _tensor(key: str, shape: tuple[int, ...], config: ModelConfig, seed: int) -> Tensor:
    """A random weight, float32, which keeps activations near unit size. Unlike a start for training, every output
    depends on every weight (no zeros but the biases)."""
    if key.endswith("pos_embed.pos_embed"):
        side = math.isqrt(shape[0])
        index = torch.arange(shape[0])
        return sincos_rows(index % side, index // side, shape[1])
    if len(shape) < 2:
        ones = ("norm" in key and key.endswith("weight")) or key == "latent_std"
        return torch.ones(shape) if ones else torch.zeros(shape)
    scale = 1 / math.sqrt(math.prod(shape[1:]))
    if any(part in key for part in ("o_proj", "down_proj")):
        scale /= math.sqrt(2 * config.decoder.num_hidden_layers)
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    tensor = torch.empty(shape)
    for piece in tensor.view(-1).split(_PIECE):
        piece.normal_(0.0, scale, generator=generator)
    return tensor


def _divided(name: str, size: int, factor: int) -> int:
    if size % factor:
        raise ValueError(f"{name} {size} can't be divided by {factor}")
    return size // factor
