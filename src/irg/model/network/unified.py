"""The unified model: one decoder over text, images read and images denoised.

Parameter names are those of BAGEL's checkpoints. The model knows tokens, not sequences: the grammar lays them out, an
``attend`` callable says which token sees which.

Legend: U understanding tokens; G generation (latent) tokens; P ViT patches; C hidden size; D values per token.
"""

import torch
from torch import Tensor, nn

from irg.model.network.config import ModelConfig
from irg.model.network.decoder import Attend, CausalLM
from irg.model.network.embeddings import Connector, PositionTable, TimeEmbedder
from irg.model.network.token_batch import TokenBatch
from irg.model.network.vit import VisionTransformer


class UnifiedModel(nn.Module):
    """Text in and out, images in (ViT patches, clean latents), velocities of images out."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        hidden = config.decoder.hidden_size
        self.language_model = CausalLM(config.decoder)
        self.time_embedder = TimeEmbedder(hidden)
        self.vae2llm = nn.Linear(config.latent_values, hidden)
        self.llm2vae = nn.Linear(hidden, config.latent_values)
        self.latent_pos_embed = PositionTable(config.max_latent_size, hidden)
        self.vit_model = VisionTransformer(config.vit)
        self.connector = Connector(config.vit.hidden_size, hidden)
        self.vit_pos_embed = PositionTable(config.vit_max_num_patch_per_side, hidden)

    @property
    def dtype(self) -> torch.dtype:
        return self.vae2llm.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.vae2llm.weight.device

    def read_patches(self, patches_PD: Tensor, cells_P: Tensor, lens: list[int]) -> Tensor:
        """ViT tokens as the decoder takes them, [P, C].

        ``cells_P`` are rows of the decoder's 2-D table; the ViT's own learned table has the same numbering.
        """
        features_PC = self.vit_model(patches_PD.to(self.dtype), cells_P, lens)
        return self.connector(features_PC) + self.vit_pos_embed(cells_P)

    def embed(self, batch: TokenBatch) -> tuple[Tensor, Tensor | None]:
        """Tokens to hidden states, one tensor per expert."""
        x_UC = batch.once("x_UC", lambda: self.language_model.model.embed_tokens(batch.ids_U))
        if batch.patch_rows_P is not None:
            assert batch.patches_PD is not None and batch.patch_cells_P is not None and batch.patch_lens is not None
            read_PC = self.read_patches(batch.patches_PD, batch.patch_cells_P, batch.patch_lens)
            x_UC = x_UC.index_copy(0, batch.patch_rows_P, read_PC.to(x_UC.dtype))
        if batch.latents_GD is None:
            return x_UC, None
        assert batch.times_G is not None and batch.latent_cells_G is not None
        latents_GD = self._network_input(batch.latents_GD, batch.times_G)
        x_GC = (
            self.vae2llm(latents_GD.to(self.dtype))
            + self._embed_times(batch)
            + self.latent_pos_embed(batch.latent_cells_G)
        )
        return x_UC, x_GC

    def _embed_times(self, batch: TokenBatch) -> Tensor:
        """[G, C], or [1, C] for a time that is all latents'. Those of all steps are computed at once."""
        repeated = batch.repeated
        if repeated is None or repeated.step is None:
            return self.time_embedder(batch.times_G)
        times_SC: Tensor = repeated.once("times_SC", lambda: self.time_embedder(repeated.times_S))
        return times_SC[repeated.step : repeated.step + 1]

    def forward(self, batch: TokenBatch, attend: Attend) -> tuple[Tensor, Tensor | None]:
        """Hidden states after the final norms, [U, C] and [G, C]."""
        x_UC, x_GC = self.embed(batch)
        rope = batch.once("rope", lambda: self.language_model.model.rope(batch.positions_T, x_UC.dtype))
        return self.language_model.model(x_UC, x_GC, rope, attend)

    def logits(self, hidden_UC: Tensor) -> Tensor:
        """Next-token logits, [U, vocabulary]."""
        return self.language_model.lm_head(hidden_UC)

    def velocity(self, hidden_GC: Tensor, noisy_GD: Tensor, times_G: Tensor) -> Tensor:
        """Flow velocity (data to noise) of noised latent tokens, float32 [G, D].

        With ``prediction="preconditioned"`` the network predicts a unit-variance residual around the best linear guess
        from x_t alone: v = x_t (2t - 1) / w + net / sqrt(w), w = t^2 + (1 - t)^2, the velocity form of EDM's skip
        connection (Karras et al. 2022) for data of unit variance.
        """
        net_GD = self.llm2vae(hidden_GC).to(torch.float32)
        if self.config.prediction == "velocity":
            return net_GD
        t_G1 = times_G.to(torch.float32)[:, None]
        w_G1 = t_G1**2 + (1 - t_G1) ** 2
        return noisy_GD.to(torch.float32) * ((2 * t_G1 - 1) / w_G1) + net_GD * w_G1.rsqrt()

    def _network_input(self, latents_GD: Tensor, times_G: Tensor) -> Tensor:
        if self.config.prediction == "velocity":
            return latents_GD
        t_G1 = times_G.to(latents_GD.dtype)[:, None]
        return latents_GD * (t_G1**2 + (1 - t_G1) ** 2).rsqrt()
