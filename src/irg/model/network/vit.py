"""The image encoder for understanding: SigLIP as a NaViT, images of any size packed one after the other.

Module names follow the public checkpoints. Legend: P patches of all images; D values per patch; C width;
H heads; E head size; B images; S patches of the largest image.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from irg.model.network.config import VitConfig


class _Attention(nn.Module):
    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x_PC: Tensor, lens: list[int]) -> Tensor:
        q, k, v = (proj(x_PC).unflatten(-1, (self.heads, -1)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        if len(set(lens)) == 1:  # equal images: one batched call
            q, k, v = (t.unflatten(0, (len(lens), lens[0])).transpose(1, 2) for t in (q, k, v))
            out_PC = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).flatten(0, 1)
        else:
            pieces = zip(q.split(lens), k.split(lens), v.split(lens), strict=True)
            out_PC = torch.cat(
                [
                    F.scaled_dot_product_attention(*(t.transpose(0, 1)[None] for t in piece))[0].transpose(0, 1)
                    for piece in pieces
                ]
            ).flatten(1)
        return self.out_proj(out_PC)


class _MLP(nn.Module):
    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class _Layer(nn.Module):
    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.self_attn = _Attention(config)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = _MLP(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x_PC: Tensor, lens: list[int]) -> Tensor:
        x_PC = x_PC + self.self_attn(self.layer_norm1(x_PC), lens)
        return x_PC + self.mlp(self.layer_norm2(x_PC))


class _Embeddings(nn.Module):
    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.patch_embedding = nn.Linear(config.patch_values, config.hidden_size)
        self.position_embedding = nn.Embedding(config.positions, config.hidden_size)

    def forward(self, patches_PD: Tensor, cells_P: Tensor) -> Tensor:
        return self.patch_embedding(patches_PD) + self.position_embedding(cells_P)


class _Encoder(nn.Module):
    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))


class _Tower(nn.Module):
    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.embeddings = _Embeddings(config)
        self.encoder = _Encoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


class VisionTransformer(nn.Module):
    """Patches of one or more images -> features; images do not see each other."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_model = _Tower(config)

    def forward(self, patches_PD: Tensor, cells_P: Tensor, lens: list[int]) -> Tensor:
        """Encode images.

        Args:
            patches_PD: values of all patches in [-1, 1], ordered (row, column, RGB) inside a patch.
            cells_P: int64 rows of the learned position table.
            lens: patches of each image.

        Returns:
            Features [P, C], after the post layer norm.
        """
        tower = self.vision_model
        x_PC = tower.embeddings(patches_PD, cells_P)
        for layer in tower.encoder.layers:
            x_PC = layer(x_PC, lens)
        return tower.post_layernorm(x_PC)
