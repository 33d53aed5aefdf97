"""Prefill: put texts and images that programs say and look at into the requests' sequences."""

from collections.abc import Sequence

import torch

from irg.engine.batching import Batches, fail_on_error
from irg.engine.ops import Forget, Look, Operation, Said, Say
from irg.engine.request import Request
from irg.engine.runner import Runner
from irg.model.weights.tokenizer import TextTokenizer
from irg.sequence.images import patchify
from irg.sequence.parts import Latents, Part, Patches, Text


class Prefiller:
    """Carries out Say, Look and Forget."""

    def __init__(self, runner: Runner, tokenizer: TextTokenizer | None = None) -> None:
        self.runner, self.tokenizer = runner, tokenizer
        self.batches = Batches()

    def run(self, requests: Sequence[Request]) -> None:
        """Every waiting Say and Look in one forward, until no request waits for one."""
        while True:
            for request in requests:
                while request.live and isinstance(request.op, Forget):
                    with fail_on_error(request):
                        request.forget(request.op.handles[-1])
                        request.advance(None)
            waiting = [request for request in requests if request.live and isinstance(request.op, Say | Look)]
            if not waiting:
                return
            for request in waiting:
                with fail_on_error(request):
                    request.pending = [(request.main, self.parts_of(request.op, request.generator))]
            for batch, _ in self.batches.run(waiting, self.extend):
                for request in batch:
                    (_, parts) = request.pending.pop()
                    request.advance(Said(request.append(parts)))

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
            pixels = config.vae_resize(op.image)
            down, channels = config.autoencoder.downsample, config.autoencoder.z_channels
            shape = (channels, pixels.shape[1] // down, pixels.shape[2] // down)
            eps = op.eps if op.eps is not None else torch.randn(shape, generator=generator)
            latents = self.runner.read_latents(pixels[None], eps[None])[0]
            patch = config.latent_patch_size
            parts.append(Latents((shape[1] // patch, shape[2] // patch), latents))
        if op.vit:
            pixels = config.vit_resize(op.image)
            patch = config.vit.patch_size
            parts.append(Patches((pixels.shape[1] // patch, pixels.shape[2] // patch), patchify(pixels, patch)))
        return parts

    def ids(self, text: str | tuple[int, ...]) -> tuple[int, ...]:
        """Token ids of a text, or the ids that were given."""
        if isinstance(text, tuple):
            return text
        assert self.tokenizer is not None, "this engine has no tokenizer: give token ids"
        return self.tokenizer.encode(text)
