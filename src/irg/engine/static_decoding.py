"""Decoding as one function of tensors that never change their shapes, which CUDA graphs and torch.compile can take.

Every text is fed equally many tokens, padded; keys and values of whole rows are attended to, masked beyond a text's
end; inputs are written into the same buffers every time. On CUDA the function's kernels are captured once for each
number of texts and first row, and replayed: a token then costs the host one launch. Compiled, a request costs one
compilation, whatever is drafted.

Legend: B texts; N tokens of each; P = B * N; L slots of a row; H query heads; K key-value heads; G = H / K;
Q = G * N; E head size; V vocabulary.
"""

import logging
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from irg.engine.cache import Context, KVCache, Row
from irg.model.network.token_batch import TokenBatch
from irg.model.network.unified import UnifiedModel

_log = logging.getLogger("irg")
NOT_WHOLE = "compile needs the whole model on one device: not offloaded, not on several"
ROW_MULTIPLE = 1024
"""Rows have a multiple of so many slots: requests that differ a little have the same shapes."""

MAX_SHAPES = 256
"""Compiled at most: one for each number of texts and length of rows."""

MAX_GRAPHS = 64
"""Captured at most: each keeps the logits that it writes. Behind that all are captured anew."""

Step = Callable[[UnifiedModel, Tensor, list[Tensor], list[Tensor]], Tensor]


def is_whole(model: UnifiedModel) -> bool:
    """Whether all layers are on one device, for good."""
    layers = model.language_model.model.layers
    return not any(layer._forward_pre_hooks for layer in layers)


def check_whole(model: UnifiedModel) -> None:
    """Raises:
    ValueError: the model is spread over several devices, or offloaded, and can't be compiled.
    """
    if not is_whole(model):
        raise ValueError(NOT_WHOLE)


class StaticDecoding:
    """Feeds text tokens to contexts on neighboring rows."""

    def __init__(
        self, model: UnifiedModel, cache: KVCache, tokens: int, compiled: bool = False, backend: str | None = None
    ) -> None:
        """Args:
        tokens: that a text is fed at a time; fewer are padded.
        compiled: by torch.compile, with this ``backend``; None: its own.

        Raises:
            ValueError: the model is spread over several devices, or offloaded.
        """
        check_whole(model)
        self.model, self.cache, self.tokens, self.compiled = model, cache, tokens, compiled
        self.captures = cache.device.type == "cuda"
        cache.row_multiple = ROW_MULTIPLE
        self._step: Step = _compiled(backend) if compiled else _forward
        self._inputs: dict[int, tuple[Tensor, Tensor]] = {}  # by B: in (pinned) host memory and on the device
        self._rows: dict[tuple[Row, int], tuple[list[Tensor], list[Tensor]]] = {}  # by first row and B: slices of slabs
        self._graphs: dict[tuple[Row, int], tuple[Any, Tensor]] = {}  # the same: captured kernels, and what they write
        self._slab: Tensor | None = None  # the first one; another has taken its place when the cache grew

    def takes(self, contexts: Sequence[Context], tokens: int) -> bool:
        """Whether contexts, with slots reserved for :attr:`tokens` more each, can be fed so many tokens here."""
        rows = [context.row for context in contexts if context.row is not None]
        return tokens <= self.tokens and all(one.precedes(other) for one, other in pairwise(rows))

    def feed(self, contexts: Sequence[Context], texts_BN: Sequence[Sequence[int]], pad: int) -> Tensor:
        """Logits after every token, float32 [B, N, V], N being that of ``texts_BN``; keys and values of padding are
        written behind them."""
        given, more = len(texts_BN[0]), self.tokens - len(texts_BN[0])
        host_3P, device_3P = self._buffers(len(contexts))
        rows = [
            [
                [*text, *[pad] * more],
                range(c.length, c.length + self.tokens),
                range(c.position, c.position + self.tokens),
            ]
            for c, text in zip(contexts, texts_BN, strict=True)
        ]
        for number, kind in enumerate(zip(*rows, strict=True)):
            host_3P[number] = torch.tensor([list(values) for values in kind]).flatten()
        device_3P.copy_(host_3P, non_blocking=True)
        assert contexts[0].row is not None, "a context whose slots were not reserved"
        where = (contexts[0].row, len(contexts))
        keys, values = self._rows_of(*where)

        logits_PV = self._run(where, lambda: self._step(self.model, device_3P, keys, values))
        return logits_PV.unflatten(0, (len(contexts), self.tokens))[:, :given]

    def _run(self, where: tuple[Row, int], step: Callable[[], Tensor]) -> Tensor:
        """What ``step`` returns, in float32; on CUDA by replaying its kernels, which the first time are captured."""
        if self.captures and where not in self._graphs:
            self._capture(where, step)
        if not self.captures:
            return step().to(torch.float32)
        graph, logits_PV = self._graphs[where]
        graph.replay()
        return logits_PV.to(torch.float32, copy=True)

    def _capture(self, where: tuple[Row, int], step: Callable[[], Tensor]) -> None:
        """Capture the kernels of a step; where that can't be, none are captured from now on."""
        step()  # compiles, and allocates what can't be while capturing
        if len(self._graphs) == MAX_GRAPHS:
            self._graphs.clear()
        pool = next((graph.pool() for graph, _ in self._graphs.values()), None)  # results are copied: one for all
        graph: Any = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                self._graphs[where] = graph, step()
        except RuntimeError as error:  # out of memory, or a kernel that can't be captured
            self._graphs.clear()
            self.captures = False
            _log.warning("Texts are written without CUDA graphs, which is slower: %s", " ".join(str(error).split()))

    def _buffers(self, texts: int) -> tuple[Tensor, Tensor]:
        if texts not in self._inputs:
            device = self.cache.device
            host = torch.zeros(3, texts * self.tokens, dtype=torch.int64, pin_memory=device.type == "cuda")
            self._inputs[texts] = host, torch.zeros_like(host, device=device)
        return self._inputs[texts]

    def _rows_of(self, first: Row, texts: int) -> tuple[list[Tensor], list[Tensor]]:
        """Each layer's keys and values [B, L, K, E] of some rows: the same tensors every time, as graphs want them."""
        if self._slab is not self.cache.keys_SKE[0]:
            self._rows.clear()
            self._graphs.clear()
            self._slab = self.cache.keys_SKE[0]
        if (first, texts) not in self._rows:
            slabs = (self.cache.keys_SKE, self.cache.values_SKE)
            view = self.cache.view_of(first, texts, self.cache.shape[first.kind][1])
            slices = [[slab.as_strided(*view).transpose(1, 2) for slab in kind] for kind in slabs]
            self._rows[first, texts] = slices[0], slices[1]
        return self._rows[first, texts]


def _compiled(backend: str | None) -> Step:
    how: dict[str, Any] = {"backend": backend} if backend else {}
    compiled: Step = torch.compile(_forward, fullgraph=True, dynamic=False, **how)
    limited: Step = torch._dynamo.config.patch(recompile_limit=MAX_SHAPES)(compiled)
    return limited


def _forward(model: UnifiedModel, inputs_3P: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    """Logits [P, V] of tokens (ids, slots, rope positions); writes their keys and values."""
    ids_P, slots_P, positions_P = inputs_3P.unbind()
    texts, slots, _, _ = keys[0].shape
    rows_P = torch.arange(texts, device=ids_P.device).repeat_interleave(len(ids_P) // texts)
    visible_PL = torch.arange(slots, device=ids_P.device) <= slots_P[:, None]

    def attend(layer: int, q_PHE: Tensor, k_PKE: Tensor, v_PKE: Tensor) -> Tensor:
        keys[layer].index_put_((rows_P, slots_P), k_PKE)
        values[layer].index_put_((rows_P, slots_P), v_PKE)
        return attention_of_few(q_PHE, keys[layer], values[layer], visible_PL)

    hidden_PC, _ = model(TokenBatch(ids_U=ids_P, positions_T=positions_P), attend)
    return model.logits(hidden_PC)


def attention_of_few(q_PHE: Tensor, k_BLKE: Tensor, v_BLKE: Tensor, visible_PL: Tensor) -> Tensor:
    """Attention [P, H, E] of a few queries to many keys: two batched matrix products around a softmax in float32.

    A fused kernel with a mask gives each key-value head to one multiprocessor, and the others wait; matrix products
    split long rows among all of them. Each text has products of its own: several rows are no batch without a copy.
    """
    texts, _, kv_heads, size = k_BLKE.shape
    pieces = zip(q_PHE.chunk(texts), k_BLKE, v_BLKE, visible_PL.chunk(texts), strict=True)
    out = []
    for q_NHE, k_LKE, v_LKE, visible_NL in pieces:
        q_KGNE = q_NHE.unflatten(1, (kv_heads, -1)).permute(1, 2, 0, 3)
        scores_KQL = (q_KGNE.flatten(1, 2) @ k_LKE.permute(1, 2, 0)).to(torch.float32) * size**-0.5
        hidden_QL = ~visible_NL.repeat(q_KGNE.shape[1], 1)
        weights_KQL = scores_KQL.masked_fill(hidden_QL, float("-inf")).softmax(dim=-1).to(v_LKE.dtype)
        out_KGNE = (weights_KQL @ v_LKE.transpose(0, 1)).view(q_KGNE.shape)
        out.append(out_KGNE.permute(2, 0, 1, 3).flatten(1, 2))
    return torch.cat(out)
