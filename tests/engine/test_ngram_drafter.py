"""Speculative decoding with n-grams: fewer forwards, and the same texts."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from irg.engine import ngram_drafter
from irg.engine.cache import Context, KVCache
from irg.engine.engine import Engine
from irg.engine.ngram_drafter import NgramDrafter, next_draft_length
from irg.engine.ops import Draw, Program, Say, Write
from irg.engine.runner import Runner
from irg.engine.settings import DrawSettings
from irg.model.network.config import DecoderConfig
from irg.model.weights.checkpoint import LoadedModel
from irg.model.weights.profile import read_profile
from irg.model.weights.tokenizer import TextTokenizer

BOS, EOS = 256, 257


class Counting(Runner):
    """Counts forwards of decoding, and the tokens in them."""

    def __init__(self, loaded: LoadedModel) -> None:
        super().__init__(loaded.model, loaded.autoencoder, rows=2, slots=32)
        self.forwards = self.fed = 0

    def feed(self, contexts: Sequence[Context], texts_BN: Sequence[Sequence[int]]) -> Tensor:
        self.forwards += 1
        self.fed += sum(map(len, texts_BN))
        return super().feed(contexts, texts_BN)


# -------------------------------------------------------------------------------------------------------------- drafts


def test_what_followed_before_follows_again() -> None:
    drafter = NgramDrafter([(BOS, 1, 2, 3, 4, 5, EOS)])
    assert drafter.draft([BOS], 3) == [1, 2, 3]
    assert drafter.draft([9, 3, 4], 9) == [5, EOS]
    assert drafter.draft([4, 3], 9) == []


def test_the_longer_ngram_and_the_latest_text_win() -> None:
    drafter = NgramDrafter()
    drafter.learn([1, 2, 3, 4, 50], 1)
    drafter.learn([9, 9, 3, 4, 60], 1)
    assert drafter.draft([1, 2, 3, 4], 1) == [50]
    assert drafter.draft([7, 7, 3, 4], 1) == [60]


def test_a_text_is_learnt_token_by_token_or_at_once() -> None:
    text = [BOS, 5, 6, 5, 6, 7, 8, EOS]
    whole, slow = NgramDrafter(), NgramDrafter()
    whole.learn(text, 1)
    for i in range(1, len(text)):
        tail = text[max(0, i - 4) : i + 1]
        slow.learn(tail, len(tail) - 1)
    assert whole._next == slow._next


def test_only_the_draft_texts_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    drafter = NgramDrafter([(BOS, 1, 2)])
    drafter.learn((BOS, 1, 3), 2)  # in the place of what the draft text says, so that nothing is added
    assert drafter.draft([BOS, 1], 2) == [3]
    drafter.learn((BOS, 1, 3, 4), 2)
    assert drafter.draft([BOS, 1], 2) == [3, 4]
    drafter.reset()
    assert drafter.draft([BOS, 1], 2) == [2]
    drafter.learn((BOS, 1, 3), 2)
    drafter.reset()
    assert drafter.draft([BOS, 1], 2) == [2]
    monkeypatch.setattr(ngram_drafter, "MAX_NGRAMS", 3)
    for token in range(10, 20):
        drafter.learn((token, token, token, token, token), 1)
    assert len(drafter._next) <= 3 + 8


def test_the_draft_length_follows_what_is_accepted() -> None:
    assert [next_draft_length(7, kept) for kept in (0, 1, 3, 4, 7)] == [3, 4, 6, 7, 7]
    assert next_draft_length(1, 0) == 1


def test_tokens_are_taken_back() -> None:
    cache = KVCache(DecoderConfig(8, 8, 8, 1, 1, 1), rows=1, slots=8)
    context = cache.new()
    cache.reserve([(context, 5)])
    cache.commit(context, 5, 5)
    cache.retract(context, 3)
    assert (context.length, context.position, context.row.filled) == (2, 2, 2)
    cache.fork(context)
    cache.reserve([(context, 1)])
    with pytest.raises(AssertionError, match="last on a row"):
        cache.retract(context, 1)


# -------------------------------------------------------------------------------------------------------------- engine


def program(prompt: str, temperature: float, tokens: int) -> Program:
    """Two thoughts with an image between them: what is left in the cache shows in all that follows."""
    yield Say(prompt)
    first = yield Write(tokens, temperature)
    drawn = yield Draw(32, 32, DrawSettings(num_timesteps=3, cfg_text_scale=2.0), drop_text=first.handles)
    yield Say("and")
    second = yield Write(tokens, temperature)
    return first, drawn, second


def results(engine: Engine, temperature: float) -> list[Any]:
    jobs = [("red", 9), ("a green cat", 3), ("", 14), ("red", 1), ("blue", 20)]
    return engine.run([(program(prompt, temperature, n), i) for i, (prompt, n) in enumerate(jobs)])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_texts_and_images_are_the_same(
    tiny_loaded: LoadedModel, tiny_tokenizer: TextTokenizer, temperature: float
) -> None:
    """Draft texts that are the model's own (right drafts), their halves, and noise (wrong ones)."""
    plain = Counting(tiny_loaded)
    wanted = results(Engine(plain, tiny_tokenizer, speculative=False), temperature)
    forms = [(BOS, *w.ids, EOS) for first, _, second in wanted for w in (first, second)]
    forms += [(BOS, *ids[3:5], 11, 12, *ids[:9]) for ids in forms]
    for known in ([], forms, forms[: len(forms) // 2]):
        runner = Counting(tiny_loaded)
        engine = Engine(runner, tiny_tokenizer)
        engine.scheduler.drafter = engine.scheduler.decoder.drafter = NgramDrafter(known)
        for got, want in zip(results(engine, temperature), wanted, strict=True):
            assert [got[0].ids, got[2].ids] == [want[0].ids, want[2].ids]
            assert [got[0].complete, got[2].complete] == [want[0].complete, want[2].complete]
            assert torch.allclose(got[1].latents, want[1].latents, atol=1e-5)
        assert runner.cache.rows_in_use == 0
        assert runner.forwards <= plain.forwards


def test_right_drafts_save_forwards(tiny_loaded: LoadedModel, tiny_tokenizer: TextTokenizer) -> None:
    """A text of 20 tokens, with bos and eos: 22 forwards alone, three of at most eight tokens with right drafts."""

    def forced() -> Program:
        yield Say("hello")
        return (yield Write(40, forced=tuple(range(65, 85))))

    counts = []
    for speculative in (False, True):
        runner = Counting(tiny_loaded)
        texts = [tiny_tokenizer.decode(list(range(65, 85)))]
        (written,) = Engine(runner, tiny_tokenizer, texts, speculative).run([(forced(), 0)])
        assert written.ids == tuple(range(65, 85)) and written.complete
        counts.append((runner.forwards, runner.fed))
    assert counts == [(22, 22), (3, 22)]


def test_the_same_request_is_computed_the_same(tiny_loaded: LoadedModel, tiny_tokenizer: TextTokenizer) -> None:
    """What earlier requests said is forgotten once nobody is at work: equal to the last bit."""
    engine = Engine(Counting(tiny_loaded), tiny_tokenizer, draft_texts=["red red red"])
    once, again = (results(engine, 1.0) for _ in range(2))
    for one, other in zip(once, again, strict=True):
        assert one[0].ids == other[0].ids and torch.equal(one[1].latents, other[1].latents)


def test_draft_texts_of_a_model_folder(tmp_path: Path) -> None:
    """By their name, and by the one that folders had before."""
    for key in ("draft_texts", "forms"):
        (tmp_path / "irg.json").write_text(json.dumps({"name": "x", key: ["Layout: a cat"]}))
        profile = read_profile(tmp_path)
        assert profile is not None and profile.draft_texts == ("Layout: a cat",)
