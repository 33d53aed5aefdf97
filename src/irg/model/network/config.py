"""The sizes and options of a unified model (plain data, no tensors), and the known models by name.

Configuration files are read and written by :mod:`irg.model.weights.config_files`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from irg.model.network.autoencoder import CompactConfig, FluxConfig
from irg.sequence.images import ResizeRule
from irg.sequence.special import Grammar, SpecialTokens


@dataclass(frozen=True)
class DecoderConfig:
    """The mixture-of-transformers decoder (Qwen2 with qk-norm, two experts a layer)."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1_000_000.0
    max_position_embeddings: int = 32768
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        _positive(self, "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads")
        if self.hidden_size % self.num_attention_heads or (self.hidden_size // self.num_attention_heads) % 2:
            raise ValueError(
                f"hidden_size {self.hidden_size} must split into {self.num_attention_heads} heads of even size"
            )
        if self.num_key_value_heads < 1 or self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} must be a multiple of num_key_value_heads "
                f"{self.num_key_value_heads}"
            )
        if self.num_hidden_layers > 1000:
            raise ValueError(f"num_hidden_layers {self.num_hidden_layers} is not a real model (at most 1000)")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True)
class VitConfig:
    """The SigLIP-NaViT image encoder. ``num_hidden_layers`` is the number of layers that are really built."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    patch_size: int = 14
    image_size: int = 980
    num_channels: int = 3
    layer_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        _positive(self, "hidden_size intermediate_size num_hidden_layers num_attention_heads patch_size image_size")

    @property
    def positions(self) -> int:
        """Rows of the learned position table."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def patch_values(self) -> int:
        return self.patch_size**2 * self.num_channels


@dataclass(frozen=True)
class ModelConfig:
    """A unified model. Everything in the last group is off for BAGEL and named for what it changes."""

    decoder: DecoderConfig
    vit: VitConfig
    autoencoder: FluxConfig | CompactConfig
    special: SpecialTokens
    latent_patch_size: int = 2
    max_latent_size: int = 64  # latent tokens a side
    vit_max_num_patch_per_side: int = 70
    vae_resize: ResizeRule = field(default_factory=lambda: ResizeRule(1024, 512, 16))
    vit_resize: ResizeRule = field(default_factory=lambda: ResizeRule(980, 224, 14))

    prediction: Literal["velocity", "preconditioned"] = "velocity"

    @property
    def grammar(self) -> Grammar:
        """What the layout of a sequence depends on."""
        return Grammar(self.special, latent_side=self.max_latent_size, patch_side=self.vit_max_num_patch_per_side)

    @property
    def latent_values(self) -> int:
        """Values of one latent token."""
        return self.latent_patch_size**2 * self.autoencoder.z_channels

    @property
    def image_stride(self) -> int:
        """Pixels a latent token covers on a side: images have sides that are multiples of this."""
        return self.autoencoder.downsample * self.latent_patch_size

    @property
    def max_image_size(self) -> int:
        """The longest side, in pixels, that the latent position table covers."""
        return self.max_latent_size * self.image_stride


def _positive(config: object, names: str) -> None:
    for name in names.split():
        value = getattr(config, name)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{type(config).__name__}.{name} must be a positive whole number, got {value!r}")


def bagel_7b() -> ModelConfig:
    """BAGEL-7B-MoT: 14.6 B parameters, 7 B of them active for a token."""
    return ModelConfig(
        decoder=DecoderConfig(152064, 3584, 18944, 28, 28, 4),
        vit=VitConfig(1152, 4304, 26, 16, patch_size=14, image_size=980),
        autoencoder=FluxConfig(),
        special=SpecialTokens(bos=151644, eos=151645, start_of_image=151652, end_of_image=151653),
    )


def mini(vocab_size: int = 1024, special: SpecialTokens | None = None) -> ModelConfig:
    """irg-mini: the same network at a size that runs on a laptop's CPU; images of 96 x 96."""
    return ModelConfig(
        decoder=DecoderConfig(vocab_size, 256, 640, 6, 8, 8, rope_theta=1_000_000.0, max_position_embeddings=4096),
        vit=VitConfig(192, 576, 4, 6, patch_size=12, image_size=96),
        autoencoder=CompactConfig(),
        special=special or SpecialTokens(0, 1, 2, 3),
        latent_patch_size=2,
        max_latent_size=8,
        vit_max_num_patch_per_side=8,
        vae_resize=ResizeRule(128, 96, 16),
        vit_resize=ResizeRule(96, 48, 12),
        prediction="preconditioned",
    )


def tiny(vocab_size: int = 300) -> ModelConfig:
    """A model for tests: runs in milliseconds, draws noise."""
    return ModelConfig(
        decoder=DecoderConfig(vocab_size, 32, 64, 2, 4, 2),
        vit=VitConfig(24, 48, 1, 2, patch_size=14, image_size=112),
        autoencoder=CompactConfig(),
        special=SpecialTokens(vocab_size - 4, vocab_size - 3, vocab_size - 2, vocab_size - 1),
        max_latent_size=8,
        vit_max_num_patch_per_side=8,
        vae_resize=ResizeRule(128, 32, 16),
        vit_resize=ResizeRule(112, 28, 14),
    )


CONFIGS: dict[str, Callable[[], ModelConfig]] = {"bagel_7b": bagel_7b, "mini": mini, "tiny": tiny}
"""The known models' sizes, for random weights and for planning without weights."""
