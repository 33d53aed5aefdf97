"""What a search at test time tried: its candidates, their scores, and why one image was kept."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image


@dataclass
class Candidate:
    """One candidate of a request.

    Attributes:
        seed: of its random numbers; the first candidate has the request's own.
        scores: of its images in order, 0..1; None where an image was not judged, or judging failed.
        image: what it ended with; None for the chosen one, whose images are in the turns.
    """

    seed: int
    scores: list[float | None] = field(default_factory=list)
    image: Image.Image | None = None


@dataclass
class Search:
    """A search over the candidates of one request, and over the rounds of each.

    Attributes:
        select: who scored the images.
        chosen: index of the candidate that the trajectory is.
        why: why it was chosen, in a sentence.
        notes: what did not go as planned: failed candidates or scores, a budget that was reached.
    """

    select: str
    candidates: list[Candidate]
    chosen: int
    why: str
    notes: list[str] = field(default_factory=list)

    @property
    def images(self) -> int:
        """How many images there are in all."""
        return sum(len(one.scores) for one in self.candidates)

    def image_names(self) -> list[str | None]:
        """For each candidate, the file its image is saved to."""
        return [None if one.image is None else candidate_name(index) for index, one in enumerate(self.candidates)]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: everything but the pixels."""
        candidates = [
            {"seed": one.seed, "scores": one.scores, "image": name}
            for one, name in zip(self.candidates, self.image_names(), strict=True)
        ]
        return {
            "select": self.select,
            "chosen": self.chosen,
            "why": self.why,
            "notes": self.notes,
            "candidates": candidates,
        }


def best_image(scores: Sequence[float | None]) -> int:
    """Index of the best of at least one image: the highest score, of equal ones the first, since a later image has to
    be better to take its place; the last if none has a score."""
    known = [(score, -index) for index, score in enumerate(scores) if score is not None]
    return -max(known)[1] if known else len(scores) - 1


def candidate_name(index: int) -> str:
    """The file of a candidate's image: candidate-1.png is the first one's."""
    return f"candidate-{index + 1}.png"
