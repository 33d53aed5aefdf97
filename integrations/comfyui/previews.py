"""Pictures of images that are still being denoised, where ComfyUI's previews are on."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from . import host

if TYPE_CHECKING:
    from PIL.Image import Image

    from irg.engine.events import DenoiseStep
    from irg.reasoning.pipeline import IRGPipeline
    from irg.reasoning.protocols.base import Job

PICTURES = 3
"""Of an image; each costs a decoding by the autoencoder."""


class Previews:
    """Follows the images that a request draws."""

    def __init__(self, pipe: "IRGPipeline", job: "Job", updates: Sequence[int]) -> None:
        """``updates``: of each image."""
        from irg.serving.previews import Previewer, preview_steps

        self._pipe, self._job, self._previewer = pipe, job, Previewer()
        self._wanted = preview_steps(list(updates), PICTURES * len(updates)) if host.shows_previews() else frozenset()

    def picture(self, event: "DenoiseStep", turn: int) -> "Image | None":
        """What image number ``turn`` (0 the first of ``updates``) will be, if it is to be shown after this step."""
        guess_ND = self._previewer.guess(event) if self._wanted else None
        if guess_ND is None or (turn, event.step) not in self._wanted:
            return None
        return self._pipe.engine.decode_latents(guess_ND, self._job.height, self._job.width)
