"""Prefill: put texts and images that programs say and look at into the requests' sequences.

Parts are noted when they are said, and computed when a Write or a Draw begins: one forward for all parts of all
requests.
"""

from collections.abc import Sequence
from concurrent.futures import CancelledError

import torch

from irg.engine.batching import Batches, fail_on_error
from irg.engine.events import WaitDone
from irg.engine.ops import Draw, Forget, Look, Operation, Said, Say, Wait
from irg.engine.request import Request
from irg.engine.runner import Runner
from irg.model.weights.tokenizer import TextTokenizer
from irg.sequence.images import patchify
from irg.sequence.parts import Latents, Part, Patches, Text


class Prefiller:
    """Carries out Say, Look and Forget, and computes the parts that a Write or a Draw needs."""

    def __init__(self, runner: Runner, tokenizer: TextTokenizer | None = None) -> None:
        self.runner, self.tokenizer = runner, tokenizer
        self.batches = Batches()

    def note(self, requests: Sequence[Request]) -> None:
        """Go on with every request until it writes, draws, or waits for something that is not there yet."""
        for request in requests:
            while request.live and isinstance(request.op, Say | Look | Forget | Wait) and not request.waiting:
                with fail_on_error(request):
                    self._carry_out(request, request.op)

    def _carry_out(self, request: Request, op: Say | Look | Forget | Wait) -> None:
        if isinstance(op, Forget):
            request.forget(op.handles[-1] if op.handles else -1)
            request.advance(None)
        elif isinstance(op, Wait):
            error = CancelledError() if op.future.cancelled() else op.future.exception()
            if error is None:
                result = op.future.result()
                request.emit(WaitDone(request.index, request.turn, result))
                request.advance(result)
            else:
                request.throw(error)
        else:
            handles = request.append(self.parts_of(op, request.generator))
            self._check_length(request)
            request.advance(Said(handles))

    def _check_length(self, request: Request) -> None:
        """Raises:
        ValueError: the sequence is longer than those that the model was made for; its work grows with the square.
        """
        (_, positions), most = (
            request.marks(range(len(request.parts))),
            self.runner.config.decoder.max_position_embeddings,
        )
        if positions > most:
            raise ValueError(
                f"prompt, texts and images take {positions:,} positions, and the model has {most:,} "
                "(max_position_embeddings of its configuration): a shorter prompt is needed"
            )

    def prefill(self, requests: Sequence[Request]) -> None:
        """Compute what the sequences of requests that begin to write or draw lack, all in one forward."""
        for request in requests:
            op = request.op
            parts = request.missing(op.drop if isinstance(op, Draw) else ())
            if parts:
                request.pending = [(request.main, parts)]
        for batch, _ in self.batches.run([request for request in requests if request.pending], self.extend):
            for request in batch:
                request.pending.clear()

    def extend(self, batch: Sequence[Request]) -> None:
        """Append what every request of a batch has pending, all in one forward."""
        self.runner.extend([item for request in batch for item in request.pending])

    def parts_of(self, op: Operation | None, generator: torch.Generator) -> list[Part]:
        """What a Say or a Look puts into a sequence; a Look draws its posterior sample from ``generator``."""
        if isinstance(op, Say):
            return [Text(self.ids(op.text))]
        assert isinstance(op, Look)
        config = self.runner.config
        parts: list[Part] = []
        if op.vae:
            pixels = (op.vae_resize or config.vae_resize)(op.image)
            down, channels = config.autoencoder.downsample, config.autoencoder.z_channels
            shape = (channels, pixels.shape[1] // down, pixels.shape[2] // down)
            eps = op.eps
            if eps is None and op.posterior == "sample":
                eps = torch.randn(shape, generator=generator)
            latents = self.runner.read_latents(pixels[None], None if eps is None else eps[None])[0]
            patch = config.latent_patch_size
            parts.append(Latents((shape[1] // patch, shape[2] // patch), latents))
        if op.vit:
            pixels = (op.vit_resize or config.vit_resize)(op.image)
            patch = config.vit.patch_size
            parts.append(Patches((pixels.shape[1] // patch, pixels.shape[2] // patch), patchify(pixels, patch)))
        return parts

    def ids(self, text: str | tuple[int, ...]) -> tuple[int, ...]:
        """Token ids of a text, or the ids that were given.

        Raises:
            ValueError: an id is not in the vocabulary.
        """
        if isinstance(text, str):
            assert self.tokenizer is not None, "this engine has no tokenizer: give token ids"
            return self.tokenizer.encode(text)
        size = self.runner.config.decoder.vocab_size
        if wrong := [i for i in text if not 0 <= i < size]:
            raise ValueError(f"token id {wrong[0]} is not in the vocabulary, which has {size} tokens")
        return text
