"""The network over the cache: append parts to contexts, decode a token, predict velocities. Knows no programs.

Legend: T new tokens; U, G understanding / generation stream; V vocabulary; N tokens of an image; D values per token.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from irg.engine.attention import Block, CachedAttention
from irg.engine.cache import Context, KVCache
from irg.engine.compiled_drawing import CompiledDrawing
from irg.engine.static_decoding import StaticDecoding, is_whole
from irg.model.network.autoencoder import Autoencoder, images_at_once
from irg.model.network.token_batch import Repeated, StreamOrder, TokenBatch, token_batch
from irg.model.network.unified import UnifiedModel
from irg.model.placement.processes import Processes
from irg.model.weights.quantize import QuantizedLinear
from irg.sequence.images import patchify
from irg.sequence.layout import SplitMode, TokenLayout, cells_of, lay_out
from irg.sequence.parts import Latents, Part, Patches


class PredictsVelocity(Protocol):
    """Images on contexts whose velocities are predicted step after step."""

    def velocity(self, noisy_GD: Tensor, times_G: Tensor) -> Tensor: ...


class Runner:
    """A model with its cache. A call that raises leaves every context as it was."""

    def __init__(
        self,
        model: UnifiedModel,
        autoencoder: Autoencoder,
        rows: int = 0,
        slots: int = 0,
        compute_dtype: torch.dtype | None = None,
        processes: Processes | None = None,
    ) -> None:
        """Args:
        rows, slots: of the cache at first, where its requests do not tell their lengths.
        compute_dtype: of the forward's keys and values, which the cache stores, where it is not the dtype that the
            weights are stored in (FSDP's mixed precision).
        processes: that run the model together.
        """
        self.model = model.eval()
        self.autoencoder = autoencoder.eval()
        self.config, self.processes = model.config, processes
        self.grammar = model.config.grammar
        devices = [next(layer.parameters()).device for layer in model.language_model.model.layers]
        decoder = replace(self.config.decoder, num_key_value_heads=model.language_model.model.kv_heads)
        self.cache = KVCache(decoder, rows, slots, compute_dtype or model.dtype, devices)
        self.static: StaticDecoding | None = None
        self.drawing: CompiledDrawing | None = None

    # ---- prefill

    @torch.inference_mode()
    def extend(self, items: Sequence[tuple[Context, Sequence[Part]]]) -> Tensor | None:
        """Append parts to contexts, all in one forward; returns hidden states in reading order [T, C].

        Items without parts are left out. Parts carry their content: ``Latents`` a float [C, h, w] map, ``Patches`` a
        float [N, D] tensor.
        """
        items = [(context, parts) for context, parts in items if parts]
        if not items:
            return None
        layouts = [lay_out(parts, self.grammar, context.position) for context, parts in items]
        contexts = [context for context, _ in items]
        every = [part for _, parts in items for part in parts]
        patches = [part.content for part in every if isinstance(part, Patches)]
        maps = [part.content for part in every if isinstance(part, Latents)]
        latents_GD = torch.cat([patchify(m, self.config.latent_patch_size) for m in maps]) if maps else None
        order = StreamOrder.of(layouts)
        times_G = None if latents_GD is None else torch.zeros(1)
        batch = token_batch(layouts, order, torch.cat(patches) if patches else None, latents_GD, times_G)
        with self._reserved(contexts, [len(layout) for layout in layouts]):
            pairs = zip(contexts, layouts, strict=True)
            blocks = [block for context, layout in pairs for block in _blocks(context, layout)]
            attend = CachedAttention(self.cache, blocks, order.stream_of_T)
            hidden_UC, hidden_GC = self.model(batch.to(self.model.device), attend)
            hidden_TC = hidden_UC if hidden_GC is None else torch.cat([hidden_UC, hidden_GC])
            hidden_TC = hidden_TC[torch.from_numpy(order.stream_of_T).to(hidden_TC.device)]
            for context, layout in zip(contexts, layouts, strict=True):
                self.cache.commit(context, len(layout), layout.next_position - context.position)
        return hidden_TC

    @contextmanager
    def _reserved(self, contexts: Sequence[Context], tokens: Sequence[int]) -> Iterator[None]:
        """Slots for a forward, which are given up again when it fails."""
        self.cache.reserve(list(zip(contexts, tokens, strict=True)))
        try:
            yield
        except BaseException:
            self.cache.release(contexts)
            raise

    # ---- decoding

    def accelerate(self, tokens: int, compiled: bool) -> None:
        """Decode and draw faster where nothing is lost: a whole model on CUDA feeds so many tokens of a text at a time
        by CUDA graphs; ``compiled``: both by compiled functions, on any device. Decoding with quantized weights is not
        compiled: that takes minutes on CUDA, for hundreds of calls of one kernel, and graphs already save the launches.

        Raises:
            ValueError: the model is spread over several devices, or offloaded, and should be compiled.
        """
        graphs = self.cache.device.type == "cuda" and self.processes is None and is_whole(self.model)
        compiles = compiled and not any(isinstance(module, QuantizedLinear) for module in self.model.modules())
        if graphs or compiles:
            self.decode_statically(tokens, compiles)
        if compiled:
            self.compile_drawing()

    def decode_statically(self, tokens: int, compiled: bool = False, backend: str | None = None) -> None:
        """Let :meth:`feed` run with shapes that do not change, so many tokens of a text at a time
        (:mod:`.static_decoding`).

        Raises:
            ValueError: the model is spread over several devices, or offloaded.
        """
        self.static = StaticDecoding(self.model, self.cache, tokens, compiled, backend)

    @torch.inference_mode()
    def feed(self, contexts: Sequence[Context], texts_BN: Sequence[Sequence[int]]) -> Tensor:
        """Append equally many text tokens to each context; logits after each of them, float32 [contexts, N, V]."""
        tokens, device = len(texts_BN[0]), self.model.device
        if self.static is not None:
            logits_BNV = self._feed_statically(self.static, contexts, texts_BN)
            if logits_BNV is not None:
                return logits_BNV
        positions_BN = torch.tensor([c.position for c in contexts])[:, None] + torch.arange(tokens)
        batch = TokenBatch(ids_U=torch.tensor(texts_BN).flatten(), positions_T=positions_BN.flatten()).to(device)
        with self._reserved(contexts, [tokens] * len(contexts)):
            blocks = [Block(context, tokens, causal=True) for context in contexts]
            attend = CachedAttention(self.cache, blocks, np.arange(tokens * len(contexts)))
            hidden_UC, _ = self.model(batch, attend)
            logits_BNV = self.model.logits(hidden_UC).to(torch.float32).unflatten(0, (len(contexts), tokens))
            for context in contexts:
                self.cache.commit(context, tokens, tokens)
        return logits_BNV

    def _feed_statically(
        self, static: StaticDecoding, contexts: Sequence[Context], texts_BN: Sequence[Sequence[int]]
    ) -> Tensor | None:
        """The same by the function of fixed shapes; None: not with these."""
        tokens = len(texts_BN[0])
        with self._reserved(contexts, [static.tokens] * len(contexts)):
            fits = static.takes(contexts, tokens)
            logits_BNV = static.feed(contexts, texts_BN, self.grammar.special.eos) if fits else None
            for context in contexts:
                self.cache.commit(context, static.tokens, static.tokens)
                self.cache.retract(context, static.tokens - (tokens if fits else 0))
        return logits_BNV

    # ---- denoising

    def compile_drawing(self, backend: str | None = None) -> None:
        """Let images drawn from now on run compiled (:mod:`.compiled_drawing`).

        Raises:
            ValueError: the model is spread over several devices, or offloaded.
        """
        self.drawing = CompiledDrawing(self.model, backend)

    @torch.inference_mode()
    def branches(
        self, blocks: Sequence[tuple[Context, tuple[int, int]]], times: Sequence[float] = ()
    ) -> PredictsVelocity:
        """Plan velocity predictions: each block is an image of (rows, columns) tokens on top of a context; ``times``
        are those that will come."""
        return Branches(self, blocks, times)

    # ---- images

    @torch.inference_mode()
    def read_latents(self, pixels_B3HW: Tensor, eps: Tensor | None = None) -> Tensor:
        """Images of one size through the autoencoder: [B, C, h, w]. ``eps`` samples the posterior."""
        parameter = next(self.autoencoder.parameters())
        pixels_B3HW = pixels_B3HW.to(parameter.device, parameter.dtype)
        return self.autoencoder.encode(pixels_B3HW, None if eps is None else eps.to(parameter.device))

    @torch.inference_mode()
    def decode_latents(self, latents_BChw: Tensor) -> Tensor:
        """Latents to pixels in about [-1, 1], float [B, 3, H, W]; as many images together as memory is planned for."""
        parameter, down = next(self.autoencoder.parameters()), self.autoencoder.downsample
        latents_BChw = latents_BChw.to(parameter.device, parameter.dtype)
        together = images_at_once(latents_BChw.shape[2] * down, latents_BChw.shape[3] * down)
        pieces = [self.autoencoder.decode(piece) for piece in latents_BChw.split(together)]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _blocks(context: Context, layout: TokenLayout) -> Iterator[Block]:
    """What is appended, block by block: each image by itself, texts that follow each other as one."""
    offset = 0
    for mode, splits in groupby(zip(layout.split_modes, layout.split_lens, strict=True), key=lambda split: split[0]):
        lens = [n for _, n in splits]
        for n in [sum(lens)] if mode == SplitMode.CAUSAL else lens:
            yield Block(context, n, mode == SplitMode.CAUSAL, offset)
            offset += n


class Branches:
    """A fixed set of images on contexts whose velocities are predicted step after step: everything that does not change
    from step to step is prepared once. The contexts never change: keys of an image lie in the free slots behind its
    context (so a branch that shares its row with a longer context moves to a row of its own, once per image)."""

    def __init__(
        self, runner: Runner, blocks: Sequence[tuple[Context, tuple[int, int]]], times: Sequence[float] = ()
    ) -> None:
        self.model, self.compiled = runner.model, runner.drawing
        self.steps = {time: step for step, time in enumerate(sorted(set(times)))}
        special, side = runner.grammar.special, runner.grammar.latent_side
        device = self.model.device
        sizes = [rows * columns for _, (rows, columns) in blocks]
        runner.cache.reserve([(context, 0) for context, _ in blocks])
        total_U, stream = 2 * len(blocks), []
        first = 0
        for i, n in enumerate(sizes):
            stream += [2 * i, *range(total_U + first, total_U + first + n), 2 * i + 1]
            first += n
        positions = [context.position for context, _ in blocks]
        positions_T = np.concatenate([np.repeat(positions, 2), np.repeat(positions, sizes)])
        cells_G = np.concatenate([cells_of(grid, side) for _, grid in blocks])
        self.batch = TokenBatch(
            ids_U=torch.tensor([special.start_of_image, special.end_of_image] * len(blocks)).to(device),
            positions_T=torch.from_numpy(positions_T).to(device),
            latent_cells_G=torch.from_numpy(cells_G).to(device),
            repeated=Repeated(torch.tensor(list(self.steps)).to(device) if self.steps else None),
        )
        self.attend = CachedAttention(
            runner.cache,
            [Block(context, n + 2) for (context, _), n in zip(blocks, sizes, strict=True)],
            np.array(stream),
        )

    @torch.inference_mode()
    def velocity(self, noisy_GD: Tensor, times_G: Tensor) -> Tensor:
        """Velocities of all latent tokens, float32 [G, D], blocks in the order they were planned.

        ``times_G``: one time per token, or a single one for all; if that is on the host and one of those that were
        told, nothing is copied to the device. Both inputs may be on any device.
        """
        repeated = self.batch.repeated
        assert repeated is not None
        on_host = self.steps and len(times_G) == 1 and times_G.device.type == "cpu"
        repeated.step = self.steps.get(float(times_G)) if on_host else None
        if repeated.step is None:
            times_G = times_G.to(self.model.device)
        else:
            assert repeated.times_S is not None
            times_G = repeated.times_S[repeated.step : repeated.step + 1]
        noisy_GD = noisy_GD.to(self.model.device)
        self.batch.latents_GD, self.batch.times_G = noisy_GD, times_G
        if self.compiled is not None:
            return self.compiled.velocity(self.batch, self.attend)
        _, hidden_GC = self.model(self.batch, self.attend)
        assert hidden_GC is not None
        return self.model.velocity(hidden_GC, noisy_GD, times_G)
