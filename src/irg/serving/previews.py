"""Pictures of images that are still being denoised.

Between two Euler steps x' = x + (t' - t) v the velocity v is known from the two states, and x' - t' v is where the
image would be at t = 0 if v stayed: the model's present guess of the finished latents.
"""

from torch import Tensor

from irg.engine.events import DenoiseStep


def preview_steps(updates: list[int], count: int) -> frozenset[tuple[int, int]]:
    """(turn, step) of ``count`` previews, the first turns served first, evenly spread over each turn's updates.

    Args:
        updates: number of updates of each turn's image.
    """
    chosen = set()
    for turn, total in enumerate(updates):
        share = count // len(updates) + (turn < count % len(updates))
        steps = {round(total * (i + 1) / (share + 1)) for i in range(share)}
        chosen |= {(turn, min(max(step, 2), total - 1)) for step in steps if total > 2}
    return frozenset(chosen)


class Previewer:
    """Follows one image's denoising and guesses its finished latents."""

    def __init__(self) -> None:
        self._turn, self._time = -1, 0.0
        self._latents_ND: Tensor | None = None

    def guess(self, event: DenoiseStep) -> Tensor | None:
        """The finished latents [N, D] that this step points to; None after a turn's first step."""
        before, time = self._latents_ND, self._time
        known = before is not None and self._turn == event.turn and event.time < time
        self._turn, self._time, self._latents_ND = event.turn, event.time, event.latents
        if not known:
            return None
        velocity_ND = (event.latents - before) / (event.time - time)
        guessed: Tensor = event.latents - event.time * velocity_ND
        return guessed
