"""Decoding texts: the next tokens of every request that writes, sampled or greedy, with n-gram drafts.

Legend: B requests; N tokens of each in a forward; V vocabulary.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from irg.engine.batching import Batches, fail_on_error, not_finite
from irg.engine.events import TextDelta, TextDone
from irg.engine.ngram_drafter import NGRAM_SIZES, NgramDrafter, next_draft_length
from irg.engine.ops import Write, Written
from irg.engine.prefill import Prefiller
from irg.engine.request import Decoding, Request
from irg.engine.runner import Runner
from irg.engine.token_sampling import choose
from irg.randomness import generator
from irg.sequence.parts import Text
from irg.sequence.special import SpecialTokens

_CONTEXT = max(NGRAM_SIZES)


@dataclass(frozen=True)
class Chosen:
    """Tokens and their log-probabilities at every position of every text, and whether the first logits are finite."""

    tokens_BN: list[list[int]]
    logprobs_BN: list[list[float]]
    finite: bool


class TextDecoder:
    """Carries out Write."""

    def __init__(self, runner: Runner, prefiller: Prefiller, drafter: NgramDrafter | None) -> None:
        self.runner, self.drafter = runner, drafter
        self.tokenizer, self.ids = prefiller.tokenizer, prefiller.ids
        self.batches = Batches()

    @property
    def special(self) -> SpecialTokens:
        return self.runner.grammar.special

    def start(self, request: Request) -> None:
        """Begin the text that the request's program asks for."""
        op = request.op
        assert isinstance(op, Write)
        prefix, choices = self.ids(op.prefix), tuple(self.ids(choice) for choice in op.choices)
        uniforms: tuple[float, ...] = ()
        if op.temperature:  # one number a choice, from a generator of the text's own: drafts change none of them
            seed = int(torch.randint(2**63 - 1, (), generator=request.generator))
            uniforms = tuple(torch.rand(op.max_tokens + 1, generator=generator(seed)).tolist())
        request.decoding = Decoding(op, self.special.bos, prefix, choices, uniforms)

    def step(self, requests: Sequence[Request]) -> None:
        """The next tokens of every text: one for sure, and of the draft after it those that the model confirms."""
        for batch, (fed_BN, logits_BNV) in self.batches.run(requests, self._forward):
            with fail_on_error(*batch):
                self._accept(batch, fed_BN, self._choose(batch, fed_BN, logits_BNV))

    def _forward(self, batch: list[Request]) -> tuple[list[list[int]], Tensor]:
        """Feed every request's next token and draft, all equally many: eos where there are fewer."""
        fed = [[d.feed, *self._draft(d)] for d in map(_decoding, batch)]
        longest = max(map(len, fed))
        fed_BN = [[*tokens, *[self.special.eos] * (longest - len(tokens))] for tokens in fed]
        return fed_BN, self.runner.feed([r.main for r in batch], fed_BN)

    def _choose(self, batch: list[Request], fed_BN: list[list[int]], logits_BNV: Tensor) -> Chosen:
        """The token that each text takes at each position, should those before be right. The host waits for the device
        here, and nowhere else in a turn."""
        texts = [_decoding(request) for request in batch]
        eos, number = self.special.eos, range(len(fed_BN[0]))
        positions = [d.position(fed[1 : n + 1], eos) for d, fed in zip(texts, fed_BN, strict=True) for n in number]
        chosen_P, logprobs_P = choose(logits_BNV.flatten(0, 1), positions, any(d.op.logprobs for d in texts))
        first = not all(d.ids for d in texts)
        finite_B = logits_BNV[:, 0].isfinite().all(dim=-1) if first else torch.ones(len(texts), device=chosen_P.device)
        read = [chosen_P, logprobs_P if logprobs_P is not None else torch.zeros_like(chosen_P), finite_B]
        values = torch.cat([tensor.to(torch.float64) for tensor in read]).tolist()
        tokens, logprobs, finite = values[: len(positions)], values[len(positions) : -len(texts)], values[-len(texts) :]
        rows = range(0, len(positions), len(number))
        return Chosen(
            [[int(token) for token in tokens[row : row + len(number)]] for row in rows],
            [logprobs[row : row + len(number)] for row in rows],
            all(finite),
        )

    def _draft(self, d: Decoding) -> list[int]:
        if d.closing:
            return []
        if given := d.prefix[len(d.ids) :]:
            return list(given)
        if self.drafter is None:
            return []
        return self.drafter.draft([self.special.bos, *d.ids[-_CONTEXT:]], d.draft_length)

    def _accept(self, batch: list[Request], fed_BN: list[list[int]], chosen: Chosen) -> None:
        """Take token by token as long as the draft was right; what was fed in vain is taken back from the cache.

        A finished text's eos was fed in the same forward as the others' tokens.
        """
        if not chosen.finite:
            raise not_finite("the first word")
        for request, fed, tokens, logprobs in zip(batch, fed_BN, chosen.tokens_BN, chosen.logprobs_BN, strict=True):
            d = _decoding(request)
            for n, (token, logprob) in enumerate(zip(tokens, logprobs, strict=True)):
                if d.closing:
                    self.runner.cache.retract(request.main, len(fed) - n - 1)
                    self._end(request)
                    break
                given = d.given
                self._take(request, token)
                if d.op.logprobs and not given and (d.complete or not d.closing):
                    d.logprobs.append(logprob)
                if fed[n + 1 : n + 2] != [d.feed]:
                    self.runner.cache.retract(request.main, len(fed) - n - 1)
                    d.draft_length = next_draft_length(d.draft_length, n)
                    break

    def _take(self, request: Request, token: int) -> None:
        """Go on with a token that was chosen."""
        d = _decoding(request)
        d.take(token, self.special.eos)
        if self.drafter is not None:
            ids = d.ids[-_CONTEXT - 1 :]
            tail = [self.special.bos, *ids, *[self.special.eos] * d.closing][-_CONTEXT - 1 :]
            self.drafter.learn(tail, len(tail) - 1)
        if d.closing or self.tokenizer is None:
            return
        if d.detokenize is None:
            d.detokenize = self.tokenizer.stream()
        self._stream(request, d, d.detokenize(d.ids[-1]))

    @staticmethod
    def _stream(request: Request, d: Decoding, text: str) -> None:
        if text:
            d.streamed += text
            request.emit(TextDelta(request.index, request.turn, text, d.op.kind))

    def _end(self, request: Request) -> None:
        d = _decoding(request)
        ids = tuple(d.ids)
        handles = request.append([Text(ids)], prefilled=True)
        request.decoding = None
        text = self.tokenizer.decode(d.ids) if self.tokenizer is not None else ""
        if text.startswith(d.streamed):
            self._stream(request, d, text[len(d.streamed) :])  # an unfinished character
        written = Written(handles, text, ids, time.perf_counter() - d.started, d.complete, tuple(d.logprobs))
        seconds, kind = written.seconds, d.op.kind
        request.emit(TextDone(request.index, request.turn, text, len(ids), seconds, ids, d.complete, kind))
        request.advance(written)


def _decoding(request: Request) -> Decoding:
    """The text that a request is writing."""
    assert request.decoding is not None
    return request.decoding
