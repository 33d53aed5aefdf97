"""One IRG request run the way the reference runs it: what the engine is measured against.

Written from the facts in the golden fixtures' README. Weights, network and grammar are the project's own; what differs
is everything around the network:

* a context is a list of key and value tensors per layer, concatenated anew by every prefill and every decoded token;
* guidance contexts, and the context a text is decoded on, are deep copies;
* a decoded text goes ids -> string -> ids and is prefilled again on the context it was not decoded on;
* the unconditional image context is prefilled from the start, beside the main one;
* a denoising step runs its guidance contexts one after the other, each concatenating context and image in each layer;
* one request at a time, one image at a time through the autoencoder.

Legend: T new tokens in stream order; L tokens of a context; H query heads; K key-value heads; E head size; N tokens of
an image; D values per token.
"""

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from irg.engine.settings import DrawSettings
from irg.model.network.autoencoder import Autoencoder
from irg.model.network.token_batch import StreamOrder, TokenBatch, token_batch
from irg.model.network.unified import UnifiedModel
from irg.model.weights.tokenizer import TextTokenizer
from irg.reasoning.protocols.base import Job
from irg.sequence.images import patchify, to_image, unpatchify
from irg.sequence.layout import cells_of, lay_out
from irg.sequence.parts import Latents, Part, Patches, Text

Ids = tuple[int, ...]


@dataclass
class Result:
    """What a request gave: the texts' ids, and latents and image of every turn."""

    texts: list[Ids] = field(default_factory=list)
    latents: list[Tensor] = field(default_factory=list)
    images: list[Image.Image] = field(default_factory=list)


@dataclass
class Context:
    """Keys and values of every layer, [L, K, E], and the rope position of what comes next."""

    keys: list[Tensor]
    values: list[Tensor]
    position: int = 0


class _Attention:
    """The attend() of one forward: context and new tokens, concatenated layer by layer."""

    def __init__(self, context: Context, keep: bool, causal: bool = False) -> None:
        self.context, self.keep, self.causal = context, keep, causal
        self.visible_TL: Tensor | None = None

    def __call__(self, layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
        context = self.context
        k_LKE, v_LKE = torch.cat([context.keys[layer], k_TKE]), torch.cat([context.values[layer], v_TKE])
        if self.keep:
            context.keys[layer], context.values[layer] = k_LKE, v_LKE
        if self.causal and self.visible_TL is None:
            new, every = len(k_TKE), len(k_LKE)
            self.visible_TL = torch.ones(new, every, dtype=torch.bool).tril(every - new).to(q_THE.device)
        q, k, v = (x.transpose(0, 1)[None] for x in (q_THE, k_LKE, v_LKE))
        grouped = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(q, k, v, self.visible_TL, enable_gqa=grouped)[0].transpose(0, 1)


class Straight:
    """Runs IRG requests one after the other. ``seconds`` adds up by stage."""

    def __init__(self, model: UnifiedModel, autoencoder: Autoencoder, tokenizer: TextTokenizer) -> None:
        self.model, self.autoencoder, self.tokenizer = model.eval(), autoencoder.eval(), tokenizer
        self.config = model.config
        self.seconds = {"prefill": 0.0, "decode": 0.0, "denoise": 0.0, "vae": 0.0}

    @torch.inference_mode()
    def run(
        self, job: Job, seed: int, forced: Sequence[Ids] | None = None, shown: Sequence[Image.Image] | None = None
    ) -> Result:
        """Prompt, text, image, then ``rounds`` times: look, reflect, better image.

        Args:
            forced: the texts' ids, taken instead of the model's likeliest tokens.
            shown: images that are looked at instead of the ones drawn (to compare later turns strictly).

        Raises:
            ValueError: the job wants sampled texts; this takes the likeliest tokens.
        """
        if job.settings.temperature:
            raise ValueError(f"texts are decoded greedily here: temperature must be 0, got {job.settings.temperature}")
        generator, result = torch.Generator().manual_seed(seed), Result()

        main = self._new()
        said = [job.system] if job.system else []
        for text in said:
            self._say(main, text)
        text_uncond = self._copy(main)
        self._say(main, job.prompt)
        said.append(job.prompt)
        said.append(self._think(main, job, result, forced))
        image_uncond = self._copy(main) if job.settings.draw(0).cfg_img_scale > 1 else None
        self._draw(job, 0, main, text_uncond, image_uncond, generator, result)

        for turn in range(1, job.settings.rounds + 1):
            self._look(main, shown[turn - 1] if shown else result.images[-1], job, generator)
            text_uncond = self._copy(main)
            said.append(self._think(main, job, result, forced))
            image_uncond = None
            if job.settings.draw(turn).cfg_img_scale > 1:
                image_uncond = self._new()
                for text in said:
                    self._say(image_uncond, text)
            self._draw(job, turn, main, text_uncond, image_uncond, generator, result)
        return result

    # ---- contexts

    def _new(self) -> Context:
        decoder = self.config.decoder
        empty = torch.empty(
            0, decoder.num_key_value_heads, decoder.head_dim, dtype=self.model.dtype, device=self.model.device
        )
        layers = decoder.num_hidden_layers
        return Context([empty] * layers, [empty] * layers)

    def _copy(self, context: Context) -> Context:
        with self.clock("prefill"):
            return copy.deepcopy(context)

    def _prefill(
        self, context: Context, part: Part, patches: Tensor | None = None, latents: Tensor | None = None
    ) -> None:
        layout = lay_out([part], self.config.grammar, context.position)
        order = StreamOrder.of([layout])
        times_G = None if latents is None else torch.zeros(len(latents))
        batch = token_batch([layout], order, patches, latents, times_G).to(self.model.device)
        self.model(batch, _Attention(context, keep=True, causal=isinstance(part, Text)))
        context.position = layout.next_position

    # ---- texts

    def _say(self, context: Context, text: str) -> None:
        with self.clock("prefill"):
            self._prefill(context, Text(self.tokenizer.encode(text)))

    def _think(self, main: Context, job: Job, result: Result, forced: Sequence[Ids] | None) -> str:
        """Decode on a copy, then put the text's own tokens into the context."""
        with self.clock("decode"):
            limit = job.settings.max_think_tokens
            ids = self._decode(copy.deepcopy(main), limit, None if forced is None else forced[len(result.texts)])
            text = self.tokenizer.decode(ids)
        result.texts.append(ids)
        self._say(main, text)
        return text

    def _decode(self, context: Context, limit: int, forced: Ids | None) -> Ids:
        special, device = self.config.special, self.model.device
        ids: list[int] = []
        token = special.bos
        while len(ids) < limit:
            batch = TokenBatch(
                ids_U=torch.tensor([token], device=device),
                positions_T=torch.tensor([context.position], device=device),
            )
            hidden_UC, _ = self.model(batch, _Attention(context, keep=True))
            context.position += 1
            token = int(self.model.logits(hidden_UC).to(torch.float32).argmax())
            if forced is not None:
                token = forced[len(ids)] if len(ids) < len(forced) else special.eos
            if token == special.eos:
                break
            ids.append(token)
        return tuple(ids)

    # ---- images

    def _look(self, main: Context, image: Image.Image, job: Job, generator: torch.Generator) -> None:
        """Through the autoencoder, then through the ViT: two prefills."""
        if job.settings.look in ("both", "vae"):
            with self.clock("vae"):
                pixels = self.config.vae_resize(image)
                down, channels = self.config.autoencoder.downsample, self.config.autoencoder.z_channels
                eps = torch.randn((channels, pixels.shape[1] // down, pixels.shape[2] // down), generator=generator)
                weight = next(self.autoencoder.parameters())
                latent = self.autoencoder.encode(pixels[None].to(weight), eps[None].to(weight.device))[0]
            with self.clock("prefill"):
                patch = self.config.latent_patch_size
                grid = (latent.shape[1] // patch, latent.shape[2] // patch)
                self._prefill(main, Latents(grid), latents=patchify(latent, patch))
        if job.settings.look in ("both", "vit"):
            with self.clock("prefill"):
                patch = self.config.vit.patch_size
                pixels = self.config.vit_resize(image)
                grid = (pixels.shape[1] // patch, pixels.shape[2] // patch)
                self._prefill(main, Patches(grid), patches=patchify(pixels, patch))

    def _draw(
        self,
        job: Job,
        turn: int,
        main: Context,
        text_uncond: Context,
        image_uncond: Context | None,
        generator: torch.Generator,
        result: Result,
    ) -> None:
        stride, patch = self.config.image_stride, self.config.latent_patch_size
        grid = (job.height // stride, job.width // stride)
        with self.clock("denoise"):
            x_ND = torch.randn((grid[0] * grid[1], self.config.latent_values), generator=generator)
            x_ND = self._sample(
                x_ND.to(self.model.device), grid, job.settings.draw(turn), main, text_uncond, image_uncond
            )
        with self.clock("vae"):
            latent = unpatchify(x_ND, grid, patch)
            pixels = self.autoencoder.decode(latent[None].to(self.model.dtype))[0]
            result.images.append(to_image(pixels))
        result.latents.append(latent)

    def _sample(
        self,
        x_ND: Tensor,
        grid: tuple[int, int],
        settings: DrawSettings,
        main: Context,
        text_uncond: Context,
        image_uncond: Context | None,
    ) -> Tensor:
        """All denoising steps of one image; every context has its own forward in every step."""
        batches = [(c, self._target(c, grid)) if c is not None else None for c in (main, text_uncond, image_uncond)]
        times = torch.linspace(1, 0, settings.num_timesteps)
        times = settings.timestep_shift * times / (1 + (settings.timestep_shift - 1) * times)
        low, high = settings.cfg_interval
        for now, after in zip(times[:-1], times[1:], strict=True):
            guided = bool((now > low) & (now <= high))
            text_scale = settings.cfg_text_scale if guided else 1.0
            image_scale = settings.cfg_img_scale if guided else 1.0
            times_N = torch.full((len(x_ND),), float(now), device=x_ND.device)
            main_v = self._velocity(batches[0], x_ND, times_N)
            if text_scale > 1:
                text_uncond_v = self._velocity(batches[1], x_ND, times_N)
                image_uncond_v = self._velocity(batches[2], x_ND, times_N) if image_scale > 1 else None
                main_v = _combine(main_v, text_uncond_v, image_uncond_v, text_scale, image_scale, settings)
            x_ND = x_ND - main_v * (now - after)
        return x_ND

    def _target(self, context: Context, grid: tuple[int, int]) -> TokenBatch:
        special, tokens = self.config.special, grid[0] * grid[1]
        batch = TokenBatch(
            ids_U=torch.tensor([special.start_of_image, special.end_of_image]),
            positions_T=torch.full((tokens + 2,), context.position),
            latent_cells_G=torch.from_numpy(cells_of(grid, self.config.grammar.latent_side).astype(np.int64)),
        )
        return batch.to(self.model.device)

    def _velocity(self, target: tuple[Context, TokenBatch] | None, x_ND: Tensor, times_N: Tensor) -> Tensor:
        assert target is not None, "this image is guided by a context that was not built"
        context, batch = target
        batch.latents_GD, batch.times_G = x_ND, times_N
        _, hidden_NC = self.model(batch, _Attention(context, keep=False))
        assert hidden_NC is not None
        return self.model.velocity(hidden_NC, x_ND, times_N)

    @contextmanager
    def clock(self, stage: str) -> Iterator[None]:
        """Around each stage; a GPU needs one that waits for it (see ``gpu_straight.py``)."""
        started = time.perf_counter()
        yield
        self.seconds[stage] += time.perf_counter() - started


def _combine(
    main: Tensor,
    text_uncond: Tensor,
    image_uncond: Tensor | None,
    text_scale: float,
    image_scale: float,
    settings: DrawSettings,
) -> Tensor:
    """Guidance of one image, [N, D], as the golden fixtures' README has it."""

    def renormed(v: Tensor, by_token: bool) -> Tensor:
        norms = [x.norm(dim=-1, keepdim=True) if by_token else x.norm() for x in (main, v)]
        return v * (norms[0] / (norms[1] + 1e-8)).clamp(min=settings.cfg_renorm_min, max=1.0)

    guided = text_uncond + text_scale * (main - text_uncond)
    if settings.cfg_renorm_type == "text_channel":
        guided = renormed(guided, by_token=True)
    if image_uncond is not None:
        guided = image_uncond + image_scale * (guided - image_uncond)
    if settings.cfg_renorm_type == "text_channel":
        return guided
    return renormed(guided, by_token=settings.cfg_renorm_type == "channel")
