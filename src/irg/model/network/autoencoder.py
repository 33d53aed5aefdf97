"""The two image autoencoders: FLUX's, and a compact one for small models on CPUs.

Both compress by ``downsample`` per side into ``z_channels`` channels and answer the same calls: ``moments``,
``encode``, ``decode``. Parameter names of the FLUX one are those of its published weights.

Legend: B images; H, W pixels; h, w latent cells on a side (H / downsample, W / downsample); z latent channels;
C channels inside; N = h * w.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# ---------------------------------------------------------------------------------------------------- configuration


@dataclass(frozen=True)
class FluxConfig:
    """Sizes of a FLUX autoencoder; the defaults are the published one's (83.8 M parameters)."""

    resolution: int = 256
    in_channels: int = 3
    downsample: int = 8
    ch: int = 128
    out_ch: int = 3
    ch_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    z_channels: int = 16
    scale_factor: float = 0.3611
    shift_factor: float = 0.1159
    group_norm_groups: int = 32
    group_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        object.__setattr__(self, "ch_mult", tuple(self.ch_mult))
        if self.downsample != 2 ** (len(self.ch_mult) - 1):
            raise ValueError(f"downsample {self.downsample} does not fit the {len(self.ch_mult)} levels of ch_mult")
        for name in ("group_norm_groups", "group_norm_eps", "scale_factor"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be more than 0, got {getattr(self, name)}")
        if not math.isfinite(self.shift_factor):
            raise ValueError(f"shift_factor must be a number, got {self.shift_factor}")


@dataclass(frozen=True)
class CompactConfig:
    """Sizes of a compact autoencoder; the defaults are those of irg-mini (about 1.9 M parameters).

    Widths and depths (number of residual blocks) are listed from the finest grid to the coarsest: the encoder works at
    1/4 and 1/8 of the image's sides, the decoder at 1/2, 1/4 and 1/8.
    """

    z_channels: int = 12
    encoder_widths: tuple[int, int] = (64, 128)
    encoder_depths: tuple[int, int] = (1, 2)
    decoder_widths: tuple[int, int, int] = (24, 64, 128)
    decoder_depths: tuple[int, int, int] = (1, 3, 3)
    posterior_std: float = 0.03
    """Spread of the posterior around its mean, in units of a standardized latent."""

    @property
    def downsample(self) -> int:
        """Pixels a latent covers on a side."""
        return 8

    def __post_init__(self) -> None:
        for name in ("encoder_widths", "encoder_depths", "decoder_widths", "decoder_depths"):
            object.__setattr__(self, name, tuple(getattr(self, name)))


# --------------------------------------------------------------------------------------------------- shared interface

PIXELS_AT_ONCE = 2 * 1024 * 1024
"""Of the images that are decoded together: activations grow with them, and large images gain nothing by company."""


def images_at_once(height: int, width: int) -> int:
    """How many images of a size are decoded together."""
    return max(1, PIXELS_AT_ONCE // (height * width))


class Autoencoder(nn.Module):
    """What both autoencoders offer; subclasses give ``moments``, ``standardize``, ``restore`` and ``_decode``."""

    downsample: int
    z_channels: int

    def moments(self, x_B3HW: Tensor) -> Tensor:
        """Mean and log-variance of the raw posterior, [B, 2z, h, w], for images in [-1, 1].

        Raises ValueError when a side is no multiple of ``downsample``.
        """
        raise NotImplementedError

    def standardize(self, z_Bzhw: Tensor) -> Tensor:
        """Raw latents to the scale that the generator works at."""
        raise NotImplementedError

    def restore(self, z_Bzhw: Tensor) -> Tensor:
        """The inverse of ``standardize``."""
        raise NotImplementedError

    def _decode(self, z_Bzhw: Tensor) -> Tensor:
        raise NotImplementedError

    def encode(self, x_B3HW: Tensor, eps: Tensor | None = None) -> Tensor:
        """Scaled latents [B, z, h, w] of images in [-1, 1].

        ``eps`` is standard normal noise [B, z, h, w] to sample the posterior with; None takes the posterior's mean.
        """
        mean_Bzhw, logvar_Bzhw = self.moments(x_B3HW).chunk(2, dim=1)
        if eps is not None:
            mean_Bzhw = mean_Bzhw + torch.exp(0.5 * logvar_Bzhw) * eps
        return self.standardize(mean_Bzhw)

    def decode(self, z: Tensor) -> Tensor:
        """Images [B, 3, H, W] of scaled latents [B, z, h, w]: about [-1, 1], not clamped."""
        if z.ndim != 4 or z.shape[1] != self.z_channels:
            raise ValueError(f"latents must be [B, {self.z_channels}, h, w], not {list(z.shape)}")
        return self._decode(self.restore(z))

    def _check_image(self, x_B3HW: Tensor) -> None:
        if x_B3HW.ndim != 4 or x_B3HW.shape[1] != 3:
            raise ValueError(f"images must be [B, 3, H, W], not {list(x_B3HW.shape)}")
        if x_B3HW.shape[2] % self.downsample or x_B3HW.shape[3] % self.downsample:
            raise ValueError(f"image sides {list(x_B3HW.shape[2:])} must be multiples of {self.downsample}")


def build_autoencoder(config: FluxConfig | CompactConfig) -> Autoencoder:
    """The autoencoder that a configuration describes, with fresh weights."""
    return FluxAutoencoder(config) if isinstance(config, FluxConfig) else CompactAutoencoder(config)


# ------------------------------------------------------------------------------------------------------------- FLUX


class _Norm(nn.GroupNorm):
    def __init__(self, channels: int, config: FluxConfig) -> None:
        super().__init__(config.group_norm_groups, channels, eps=config.group_norm_eps)


class _ResnetBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int, config: FluxConfig) -> None:
        super().__init__()
        self.norm1 = _Norm(c_in, config)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2 = _Norm(c_out, config)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        if c_in != c_out:
            self.nin_shortcut = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW = self.conv1(F.silu(self.norm1(x_BCHW)))
        y_BCHW = self.conv2(F.silu(self.norm2(y_BCHW)))
        if hasattr(self, "nin_shortcut"):
            x_BCHW = self.nin_shortcut(x_BCHW)
        return x_BCHW + y_BCHW


class _AttnBlock(nn.Module):
    """Single-head attention among all cells of one image."""

    def __init__(self, channels: int, config: FluxConfig) -> None:
        super().__init__()
        self.norm = _Norm(channels, config)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BChw: Tensor) -> Tensor:
        y_BChw = self.norm(x_BChw)
        # contiguous channels: the fused kernels need them, and the others write the whole N x N score matrix
        projected = (f(y_BChw).flatten(2).transpose(1, 2).contiguous() for f in (self.q, self.k, self.v))
        q_B1NC, k_B1NC, v_B1NC = (x.unsqueeze(1) for x in projected)
        mixed_B1NC = F.scaled_dot_product_attention(q_B1NC, k_B1NC, v_B1NC)
        return x_BChw + self.proj_out(mixed_B1NC.squeeze(1).transpose(1, 2).reshape(x_BChw.shape))


class _Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(F.pad(x_BCHW, (0, 1, 0, 1)))


class _Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(F.interpolate(x_BCHW, scale_factor=2.0, mode="nearest"))


def _middle(channels: int, config: FluxConfig) -> nn.Module:
    middle = nn.Module()
    middle.block_1 = _ResnetBlock(channels, channels, config)
    middle.attn_1 = _AttnBlock(channels, config)
    middle.block_2 = _ResnetBlock(channels, channels, config)
    return middle


def _through_middle(middle: nn.Module, x_BChw: Tensor) -> Tensor:
    for name in ("block_1", "attn_1", "block_2"):
        x_BChw = middle.get_submodule(name)(x_BChw)
    return x_BChw


def _level(c_in: int, c_out: int, depth: int, config: FluxConfig) -> nn.Module:
    level = nn.Module()
    level.block = nn.ModuleList(_ResnetBlock(c_in if i == 0 else c_out, c_out, config) for i in range(depth))
    return level


class _FluxEncoder(nn.Module):
    def __init__(self, config: FluxConfig) -> None:
        super().__init__()
        widths = [config.ch * m for m in (1, *config.ch_mult)]
        self.conv_in = nn.Conv2d(config.in_channels, config.ch, 3, padding=1)
        self.down = nn.ModuleList()
        for i, (c_in, c_out) in enumerate(pairwise(widths)):
            level = _level(c_in, c_out, config.num_res_blocks, config)
            if i < len(config.ch_mult) - 1:
                level.downsample = _Downsample(c_out)
            self.down.append(level)
        self.mid = _middle(widths[-1], config)
        self.norm_out = _Norm(widths[-1], config)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.z_channels, 3, padding=1)

    def forward(self, x_B3HW: Tensor) -> Tensor:
        hidden = self.conv_in(x_B3HW)
        for level in self.down:
            for block in level.get_submodule("block").children():
                hidden = block(hidden)
            if hasattr(level, "downsample"):
                hidden = level.get_submodule("downsample")(hidden)
        return self.conv_out(F.silu(self.norm_out(_through_middle(self.mid, hidden))))


class _FluxDecoder(nn.Module):
    def __init__(self, config: FluxConfig) -> None:
        super().__init__()
        widths = [config.ch * m for m in config.ch_mult]
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid = _middle(widths[-1], config)
        # Levels are numbered from the finest grid, but run from the coarsest.
        self.up = nn.ModuleList()
        for i, c_out in enumerate(widths):
            level = _level(widths[min(i + 1, len(widths) - 1)], c_out, config.num_res_blocks + 1, config)
            if i > 0:
                level.upsample = _Upsample(c_out)
            self.up.append(level)
        self.norm_out = _Norm(widths[0], config)
        self.conv_out = nn.Conv2d(widths[0], config.out_ch, 3, padding=1)

    def forward(self, z_Bzhw: Tensor) -> Tensor:
        hidden = _through_middle(self.mid, self.conv_in(z_Bzhw))
        for level in reversed(list(self.up)):
            for block in level.get_submodule("block").children():
                hidden = block(hidden)
            if hasattr(level, "upsample"):
                hidden = level.get_submodule("upsample")(hidden)
        return self.conv_out(F.silu(self.norm_out(hidden)))


class FluxAutoencoder(Autoencoder):
    """FLUX's autoencoder: group norms, one attention in the middle, one global shift and scale of its latents."""

    def __init__(self, config: FluxConfig) -> None:
        super().__init__()
        self.config = config
        self.downsample, self.z_channels = config.downsample, config.z_channels
        self.encoder = _FluxEncoder(config)
        self.decoder = _FluxDecoder(config)

    def moments(self, x_B3HW: Tensor) -> Tensor:
        self._check_image(x_B3HW)
        return self.encoder(x_B3HW)

    def standardize(self, z_Bzhw: Tensor) -> Tensor:
        return self.config.scale_factor * (z_Bzhw - self.config.shift_factor)

    def restore(self, z_Bzhw: Tensor) -> Tensor:
        return z_Bzhw / self.config.scale_factor + self.config.shift_factor

    def _decode(self, z_Bzhw: Tensor) -> Tensor:
        return self.decoder(z_Bzhw)


# ---------------------------------------------------------------------------------------------------------- compact


class _PlainBlock(nn.Module):
    """Residual block without norms; its second convolution starts at zero, so that depth costs no stability."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x_BChw: Tensor) -> Tensor:
        return x_BChw + self.conv2(F.silu(self.conv1(x_BChw)))


def _blocks(channels: int, depth: int) -> list[nn.Module]:
    return [_PlainBlock(channels) for _ in range(depth)]


class CompactAutoencoder(Autoencoder):
    """A small fully convolutional autoencoder whose latents are standardized channel by channel.

    Its heavy path has no norm layers, and nearly all arithmetic happens at 1/8 and 1/4 of the image's sides, which is
    what CPUs run well. The posterior's spread is fixed.
    """

    latent_mean: Tensor
    latent_std: Tensor
    downsample = 8

    def __init__(self, config: CompactConfig) -> None:
        super().__init__()
        self.config = config
        self.z_channels = config.z_channels
        fine, coarse = config.encoder_widths
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(48, fine, 3, padding=1),
            *_blocks(fine, config.encoder_depths[0]),
            nn.PixelUnshuffle(2),
            nn.Conv2d(4 * fine, coarse, 1),
            *_blocks(coarse, config.encoder_depths[1]),
            nn.SiLU(),
            nn.Conv2d(coarse, config.z_channels, 3, padding=1),
        )
        half, quarter, eighth = config.decoder_widths
        self.decoder = nn.Sequential(
            nn.Conv2d(config.z_channels, eighth, 3, padding=1),
            *_blocks(eighth, config.decoder_depths[2]),
            nn.Conv2d(eighth, 4 * quarter, 1),
            nn.PixelShuffle(2),
            *_blocks(quarter, config.decoder_depths[1]),
            nn.Conv2d(quarter, 4 * half, 1),
            nn.PixelShuffle(2),
            *_blocks(half, config.decoder_depths[0]),
            nn.SiLU(),
            nn.Conv2d(half, 12, 3, padding=1),
            nn.PixelShuffle(2),
        )
        self.register_buffer("latent_mean", torch.zeros(config.z_channels))
        self.register_buffer("latent_std", torch.ones(config.z_channels))

    def moments(self, x_B3HW: Tensor) -> Tensor:
        self._check_image(x_B3HW)
        mean_Bzhw = self.encoder(x_B3HW)
        logvar_z = 2 * torch.log(self.config.posterior_std * self.latent_std)
        return torch.cat([mean_Bzhw, logvar_z.view(-1, 1, 1).expand_as(mean_Bzhw)], dim=1)

    def standardize(self, z_Bzhw: Tensor) -> Tensor:
        return (z_Bzhw - self.latent_mean.view(-1, 1, 1)) / self.latent_std.view(-1, 1, 1)

    def restore(self, z_Bzhw: Tensor) -> Tensor:
        return z_Bzhw * self.latent_std.view(-1, 1, 1) + self.latent_mean.view(-1, 1, 1)

    def _decode(self, z_Bzhw: Tensor) -> Tensor:
        return self.decoder(z_Bzhw)
