"""The ground truth of the mini world as a critic: what a detector finds wrong in an image, in irg-mini's own words.

What perfect reading would bring: the second image is drawn by the model, from a true reflection.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from irg.critics import CriticError, CriticOptions, Review, Verdict, WorkerCritic
from irg_mini import world
from irg_mini.world.detector import LABEL_DETECTOR, Detector
from irg_mini.world.rules import SCORE_THRESHOLD


@dataclass(frozen=True)
class TrueReflection:
    """What is wrong with an image, and the text that says it and ends with the layout of the corrected image."""

    flaws: Sequence[world.Flaw]
    text: str


def true_reflection(
    detector: Detector,
    request: world.Request,
    pixels: np.ndarray,
    thinking: str | None,
    rng: np.random.Generator,
) -> TrueReflection:
    """The reflection on an image, uint8 [H, W, 3], by what ``detector`` sees in it.

    ``rng`` chooses where things go that are missing or have to move; the layout that ``thinking`` is comes first.
    """
    seen, size = detector.detect(pixels[None], threshold=SCORE_THRESHOLD)[0], pixels.shape[0]
    try:
        intended = world.parse_layout(thinking or "")
    except ValueError:  # a model's thinking need not be a layout
        intended = None
    flaws = world.find_flaws(request, seen, size=size, threshold=SCORE_THRESHOLD)
    corrected = world.correct(request, seen, intended, rng, size=size, threshold=SCORE_THRESHOLD)
    return TrueReflection(flaws, world.reflect(request, flaws, corrected, seen, size))


class MiniCritic(WorkerCritic):
    """Knows what a prompt of the mini world asks for, sees what an image shows, and says the difference.

    By default it sees with the label detector, not with the one that scores in ``irg bench mini``.
    """

    def __init__(self, folder: Path | str | None = None) -> None:
        super().__init__("mini" if folder is None else f"mini:{folder}")
        self._detector = Detector.load(folder or LABEL_DETECTOR)

    def judge(self, review: Review) -> Verdict:
        """See :meth:`WorkerCritic.judge`; the same review gets the same verdict."""
        request = world.parse_prompt(review.prompt)
        if request is None:
            raise CriticError("refused", f"the mini world does not know what {review.prompt[:60]!r} asks for")
        if unknown := [one.name for one in request.include if one.name not in self._detector.config.names]:
            raise CriticError("refused", f"the detector does not know {', '.join(unknown)}")
        pixels = np.asarray(review.image.convert("RGB"))
        digest = hashlib.sha256(review.prompt.encode() + pixels.tobytes()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8]))
        truth = true_reflection(self._detector, request, pixels, review.thinking, rng)
        said = world.parse_reflection(truth.text)
        score = 1 / (1 + len(truth.flaws))
        if not truth.flaws:
            return Verdict("", "", True, score, truth.text)
        return Verdict(said.faults, said.improvements, False, score, truth.text)


def make(rest: str, options: CriticOptions) -> MiniCritic:
    """The ground truth of the mini world, by the label detector; mini:FOLDER for another one."""
    return MiniCritic(rest or None)
