"""Decoding texts: the next tokens of every request that writes, sampled or greedy, with n-gram drafts.

Legend: B requests; N tokens of each in a forward; V vocabulary.
"""

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from irg.engine.batching import Batches, fail_on_error, require_finite
from irg.engine.events import TextDelta, TextDone
from irg.engine.ngram_drafter import NGRAM_SIZES, NgramDrafter, next_draft_length
from irg.engine.ops import Write, Written
from irg.engine.prefill import Prefiller
from irg.engine.request import Decoding, Request
from irg.engine.runner import Runner
from irg.engine.token_sampling import restrict, sample
from irg.sequence.parts import Text
from irg.sequence.special import SpecialTokens

_CONTEXT = max(NGRAM_SIZES)


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
        request.decoding = Decoding(op, self.special.bos, prefix, choices)

    def step(self, requests: Sequence[Request]) -> None:
        """The next tokens of every text: one for sure, and of the draft after it those that the model confirms."""
        for batch, (fed_BN, logits_BNV) in self.batches.run(requests, self._forward):
            with fail_on_error(*batch):
                self._accept(batch, fed_BN, logits_BNV)

    def _forward(self, batch: list[Request]) -> tuple[list[list[int]], Tensor]:
        """Feed every request's next token and draft, all equally many: eos where there are fewer."""
        fed = [[d.feed, *self._draft(d)] for d in map(_decoding, batch)]
        longest = max(map(len, fed))
        fed_BN = [[*tokens, *[self.special.eos] * (longest - len(tokens))] for tokens in fed]
        return fed_BN, self.runner.feed([r.main for r in batch], fed_BN)

    def _draft(self, d: Decoding) -> list[int]:
        if d.closing:
            return []
        if given := d.prefix[len(d.ids) :]:
            return list(given)
        if self.drafter is None:
            return []
        return self.drafter.draft([self.special.bos, *d.ids[-_CONTEXT:]], d.draft_length)

    def _accept(self, batch: list[Request], fed_BN: list[list[int]], logits_BNV: Tensor) -> None:
        """Choose token by token as long as the draft was right; what was fed in vain is taken back from the cache.

        A finished text's eos was fed in the same forward as the others' tokens.
        """
        if not all(_decoding(request).ids for request in batch):
            require_finite(logits_BNV[:, 0], "the first word")
        going = list(range(len(batch)))
        for n in range(len(fed_BN[0])):
            rest = len(fed_BN[0]) - n - 1
            ended = [b for b in going if _decoding(batch[b]).closing]
            for b in ended:
                self.runner.cache.retract(batch[b].main, rest)
                self._end(batch[b])
            going = [b for b in going if b not in ended]
            if not going:
                break
            logits_BV = logits_BNV[going, n]
            chosen = self._choose([batch[b] for b in going], logits_BV)
            given = [_decoding(batch[b]).given for b in going]
            for b, token in zip(going, chosen, strict=True):
                self._take(batch[b], token)
            self._note_logprobs([_decoding(batch[b]) for b in going], given, logits_BV)
            right = [b for b in going if fed_BN[b][n + 1 : n + 2] == [_decoding(batch[b]).feed]]
            for b in set(going).difference(right):
                d = _decoding(batch[b])
                self.runner.cache.retract(batch[b].main, rest)
                d.draft_length = next_draft_length(d.draft_length, n)
            going = right

    @staticmethod
    def _choose(requests: Sequence[Request], logits_BV: Tensor) -> list[int]:
        """The next token of each, as its operation says."""
        texts = [_decoding(request) for request in requests]
        if any(d.restricted for d in texts):
            rows = [
                restrict(row_V, d.op.temperature, d.op.top_k, d.op.top_p, d.allowed()) if d.restricted else row_V
                for d, row_V in zip(texts, logits_BV, strict=True)
            ]
            logits_BV = torch.stack(rows)
        return sample(logits_BV, [d.op.temperature for d in texts], [request.generator for request in requests])

    @staticmethod
    def _note_logprobs(texts: Sequence[Decoding], given: Sequence[bool], logits_BV: Tensor) -> None:
        """Keep the log-probabilities of the tokens just taken, where they were wanted and not given."""
        rows = [b for b, d in enumerate(texts) if d.op.logprobs and not given[b] and (d.complete or not d.closing)]
        if not rows:
            return
        temperatures_B1 = torch.tensor([[texts[b].op.temperature or 1.0] for b in rows], device=logits_BV.device)
        tokens_B1 = torch.tensor([[texts[b].feed] for b in rows], device=logits_BV.device)
        logprobs_BV = (logits_BV[rows] / temperatures_B1).log_softmax(dim=-1)
        for b, value in zip(rows, logprobs_BV.gather(1, tokens_B1).flatten().tolist(), strict=True):
            texts[b].logprobs.append(value)

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
