"""What an image of the mini world is worth, as a reward: ``mini-image``."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from irg.learning.rl.prompts import Prompt
from irg.learning.rl.rewards import Score
from irg.results.trajectory import Trajectory
from irg_mini import world
from irg_mini.measure.plan_rewards import detector_named, request_of
from irg_mini.world.detector import LABEL_DETECTOR
from irg_mini.world.rules import SCORE_THRESHOLD


@dataclass(frozen=True)
class ImageReward:
    """1 for an image in which the detector finds all that the prompt asks for and nothing more, else 0."""

    detector: str = LABEL_DETECTOR

    def __call__(self, prompt: Prompt, trajectory: Trajectory) -> Score:
        return self.scores([prompt], [trajectory])[0]

    def scores(self, prompts: Sequence[Prompt], trajectories: Sequence[Trajectory]) -> list[Score]:
        """All scores of a step: the detector looks at all images of a size at once.

        Raises:
            ValueError: a trajectory has no image, or a prompt is none of the world's.
        """
        requests = [request_of(prompt) for prompt in prompts]
        images = [trajectory.image for trajectory in trajectories]
        by_size: dict[tuple[int, int], list[int]] = {}
        for number, image in enumerate(images):
            if image is None:
                raise ValueError("mini-image: there is no image to look at")
            by_size.setdefault(image.size, []).append(number)
        found: dict[int, Score] = {}
        for members in by_size.values():
            pixels_BHW3 = np.stack([np.asarray(images[i]) for i in members])
            for i, seen in zip(
                members, detector_named(self.detector).detect(pixels_BHW3, SCORE_THRESHOLD), strict=True
            ):
                right = world.satisfied(requests[i], seen, threshold=SCORE_THRESHOLD)
                names = ", ".join(f"{one.color or ''} {one.name}".strip() for one in seen)
                found[i] = Score(float(right), reasons=f"seen: {names or 'nothing'}")
        return [found[i] for i in range(len(images))]
