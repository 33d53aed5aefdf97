"""Which attention calls a forward is planned as, and which of them need a mask."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from irg.engine import runner as runner_module
from irg.engine.attention import Block, CachedAttention
from irg.engine.cache import KVCache
from irg.engine.engine import Engine
from irg.engine.ops import Draw, Look, Program, Say, Write
from irg.engine.runner import Runner
from irg.engine.settings import DrawSettings
from irg.model.network.config import DecoderConfig
from irg.model.network.packed_attention import dense_attention, to_bias
from irg.model.weights.checkpoint import LoadedModel
from irg.model.weights.tokenizer import TextTokenizer

DECODER = DecoderConfig(300, 32, 64, 1, 4, 2)


@pytest.mark.parametrize(("queries", "keys"), [(5, 5), (5, 9), (1, 9), (40, 70)])
def test_causal_attention_is_aligned_to_the_end(queries: int, keys: int) -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, queries, 8, generator=generator)
    k, v = (torch.randn(2, 2, keys, 8, generator=generator) for _ in range(2))
    bias = to_bias(torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries), torch.float32)
    assert torch.allclose(dense_attention(q, k, v, causal=True), dense_attention(q, k, v, bias), atol=1e-6)


def planned(blocks: list[tuple[int, int, bool, int]], device: str = "cpu") -> list[Any]:
    """Calls for blocks (tokens before, tokens, causal, offset), each on a row of its own unless it has an offset."""
    cache = KVCache(DECODER, rows=4, slots=64)
    cache.device = torch.device(device)  # of the plan alone
    made: list[Block] = []
    for before, tokens, causal, offset in blocks:
        context = made[-1].context if offset else cache.new()
        if not offset:
            cache.reserve([(context, before)])
            cache.commit(context, before, before)
        made.append(Block(context, tokens, causal, offset))
    order = np.arange(sum(block.tokens for block in made))
    (_, calls) = CachedAttention(cache, made, order)._plans[cache.device]
    return calls


def test_an_image_behind_a_text_needs_no_mask() -> None:
    """Text, latents, patches and text in one forward: four calls, each over what lies before it."""
    calls = planned([(7, 5, True, 0), (7, 20, False, 5), (7, 18, False, 25), (7, 6, True, 43)])
    assert [call.view[0][2] for call in calls] == [12, 32, 50, 56]
    assert [call.bias_R1QL is None for call in calls] == [False, True, True, False]
    assert calls[0].bias_R1QL.shape == (1, 1, 5, 12)


def test_images_are_attended_from_without_gathering() -> None:
    """Two images in one forward: the tokens around them, then themselves, each a slice of the stream."""
    cache = KVCache(DECODER, rows=2, slots=64)
    contexts = [cache.new() for _ in range(2)]
    cache.reserve([(context, 7) for context in contexts])
    for context in contexts:
        cache.commit(context, 7, 7)
    stream = np.array([0, *range(4, 24), 1, 2, *range(24, 44), 3])
    attend = CachedAttention(cache, [Block(context, 22) for context in contexts], stream)
    (_, calls) = attend._plans[cache.device]
    assert [call.tokens for call in calls] == [slice(0, 2), slice(2, 4), slice(4, 24), slice(24, 44)]
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(44, heads, 8, generator=generator) for heads in (4, 2, 2))
    out = attend(0, q, k, v)
    for context, own in zip(contexts, np.split(stream, 2), strict=True):
        tokens = torch.from_numpy(own)
        slots = cache.slots_of(context.row, 29)
        keys, values = (slab[0][slots].transpose(0, 1) for slab in (cache.keys_SKE, cache.values_SKE))
        assert torch.equal(keys[:, 7:], k[tokens].transpose(0, 1))
        wanted = dense_attention(q[tokens].transpose(0, 1)[None], keys[None], values[None])[0].transpose(0, 1)
        assert torch.allclose(out[tokens], wanted, atol=1e-6)


def test_a_first_text_needs_no_mask() -> None:
    (call,) = planned([(0, 30, True, 0)])
    assert call.causal and call.bias_R1QL is None


def test_texts_of_unequal_contexts_share_a_masked_call() -> None:
    """Decoding: one token each is a call without a mask only where all see everything."""
    (call,) = planned([(7, 1, True, 0), (9, 1, True, 0)])
    visible = (call.bias_R1QL == 0).sum(dim=-1).flatten().tolist()
    assert (call.view[0][2], visible) == (10, [8, 10])
    (call,) = planned([(7, 1, True, 0), (7, 1, True, 0)])
    assert call.bias_R1QL is None and not call.causal


def test_a_whole_request_builds_masks_for_texts_alone(
    tiny_loaded: LoadedModel, tiny_tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest mask has as many rows as a text has tokens, never as many as an image."""
    largest = []

    class Watched(CachedAttention):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            calls = next(iter(self._plans.values()))[1]
            largest.extend(call.bias_R1QL.shape[2] for call in calls if call.bias_R1QL is not None)

    monkeypatch.setattr(runner_module, "CachedAttention", Watched)
    engine = Engine(Runner(tiny_loaded.model, tiny_loaded.autoencoder), tiny_tokenizer, speculative=False)

    def program() -> Program:
        said = yield Say("a cat")
        shown = yield Look(Image.new("RGB", (64, 64)))
        after = yield Say("red")
        yield Write(4)
        yield Draw(64, 64, DrawSettings(num_timesteps=3, cfg_img_scale=2.0), after.handles, shown.handles)
        assert said

    engine.run([(program(), 0)])
    assert max(largest) == len("red") + 2 + 4 + 2  # what was said and what was written after the image, in a branch


def test_what_flow_steps_share_is_computed_once(
    tiny_loaded: LoadedModel, tiny_tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Embeddings of times, and rotary tables: once a plan of six steps in step with each other; the plan changes where
    guidance ends."""
    counts = Counter[str]()
    model = tiny_loaded.model
    modules = {"times": model.time_embedder, "rope": model.language_model.model.rope}
    for name, module in modules.items():
        run = module.forward
        monkeypatch.setattr(module, "forward", lambda *a, n=name, run=run: (counts.update([n]), run(*a))[1])

    def program() -> Program:
        said = yield Say("a cat")
        counts.clear()
        yield Draw(64, 64, DrawSettings(num_timesteps=7, cfg_interval=(0.4, 1.0)), said.handles)

    Engine(Runner(model, tiny_loaded.autoencoder), tiny_tokenizer).run([(program(), 0), (program(), 1)])
    assert counts == {"times": 2, "rope": 2 + 1}  # and the prefill
