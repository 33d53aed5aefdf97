"""What a plan is worth, as rewards: of the thinking, or of the layout that a reflection ends with.

``mini-plan``: nothing is wrong with it, and the label detector accepts the world's rendering of it. ``mini-overlap``:
things don't cover one another. ``mini-sizes``: the sizes of a step's plans are spread as the world's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from irg.learning.rl.prompts import Prompt
from irg.learning.rl.rewards import Score
from irg.results.trajectory import Trajectory
from irg_mini import world
from irg_mini.data.stages import Sprites
from irg_mini.world.detector import LABEL_DETECTOR, Detector
from irg_mini.world.rules import SCORE_THRESHOLD

CLIPPED = 2.0
"""A plan's sizes are at most this much (in nats) too frequent or too rare."""


def request_of(prompt: Prompt) -> world.Request:
    """What a prompt asks for: as its source says, or as the prompt reads.

    Raises:
        ValueError: neither says.
    """
    if prompt.truth:
        return world.Request.from_json(dict(prompt.truth))
    if (request := world.parse_prompt(prompt.text)) is None:
        raise ValueError(f"the mini world does not know what {prompt.text[:60]!r} asks for")
    return request


def plan_of(trajectory: Trajectory) -> str:
    """The layout that the last text is, or ends with; empty if it has none."""
    text = trajectory.turns[-1].thinking or ""
    if "Final prompt:" not in text:
        return text
    try:
        return world.parse_reflection(text).final_prompt
    except ValueError:
        return ""


def scene_of(trajectory: Trajectory) -> world.Scene | None:
    """The scene of the plan; None where it is no layout."""
    try:
        return world.parse_layout(plan_of(trajectory))
    except ValueError:
        return None


@dataclass(frozen=True)
class PlanReward:
    """1 for a plan without a flaw whose rendering the detector accepts, ``flawless`` where it does not, else 0.

    A first plan must also name the prompt's unknown words, and what is drawn in their place.
    """

    flawless: float = 0.3
    detector: str = LABEL_DETECTOR
    size: int = 128
    sprites: Sprites = "fluent"

    def __call__(self, prompt: Prompt, trajectory: Trajectory) -> Score:
        return self.scores([prompt], [trajectory])[0]

    def scores(self, prompts: Sequence[Prompt], trajectories: Sequence[Trajectory]) -> list[Score]:
        """All scores of a step: the detector looks at many renderings at once."""
        requests, scenes = [request_of(prompt) for prompt in prompts], [scene_of(one) for one in trajectories]
        pairs = list(zip(requests, scenes, trajectories, strict=True))
        faults = [_faults(request, scene, trajectory, self.size) for request, scene, trajectory in pairs]
        right = [i for i, fault in enumerate(faults) if not fault]
        icons = world.load_sprites(self.sprites)
        images = [world.render(scene, self.size, icons) for i in right if (scene := scenes[i]) is not None]
        seen = detector_named(self.detector).detect(np.stack(images), threshold=SCORE_THRESHOLD) if images else []
        accepted = {
            i: world.satisfied(requests[i], found, threshold=SCORE_THRESHOLD)
            for i, found in zip(right, seen, strict=True)
        }
        found = []
        for i, (scene, fault) in enumerate(zip(scenes, faults, strict=True)):
            value = 0.0 if fault else 1.0 if accepted[i] else self.flawless
            parts = {"flawless": float(not fault), "accepted": float(accepted.get(i, False))}
            reasons = fault or ("" if accepted[i] else "the detector does not accept the rendering")
            found.append(Score(value, parts, reasons, malformed=scene is None))
        return found


def _faults(request: world.Request, scene: world.Scene | None, trajectory: Trajectory, size: int) -> str:
    """What is wrong with a plan, in words; empty: nothing."""
    if scene is None:
        return "no layout"
    if request.background is not None and scene.background != request.background:
        return f"the scene is {scene.background}, not {request.background}"
    flaws = world.find_flaws(request, world.see(scene, size), size=size)
    if flaws:
        return ", ".join(f"{flaw.kind} {flaw.wanted.name if flaw.wanted else ''}".strip() for flaw in flaws)
    if len(trajectory.turns) > 1:
        return ""
    wanted, said = world.think(request, scene), trajectory.turns[-1].thinking or ""
    unknown, named = (text.partition("Scene:")[0].split() for text in (wanted, said))
    return "" if unknown == named else f"unknown words: {' '.join(named) or 'none'}, not {' '.join(unknown) or 'none'}"


@cache
def detector_named(name: str) -> Detector:
    """A bundled detector, or that of a folder; loaded once."""
    return Detector.load(name)


@dataclass(frozen=True)
class OverlapReward:
    """Minus the worst overlap of two things that the request does not put on or behind one another (shared area over
    the smaller one's, 0 to 1, from what the world lets touch); 0 for what is no plan."""

    def __call__(self, prompt: Prompt, trajectory: Trajectory) -> Score:
        scene = scene_of(trajectory)
        if scene is None:
            return Score(0.0)
        return Score(-max(0.0, world.worst_overlap(request_of(prompt), scene) - world.TOUCHING))


@dataclass(frozen=True)
class SizesReward:
    """How much rarer a plan's sizes are among the step's plans than in the world's own scenes of the same prompts.

    That is the mean over its things of log(share in the world's scenes / share in the plans), at most 2 in absolute
    value. Its expectation is minus the Kullback-Leibler divergence of the plans' sizes from the world's, so that sizes
    neither collapse into one nor become arbitrary.
    """

    def __call__(self, prompt: Prompt, trajectory: Trajectory) -> Score:
        return self.scores([prompt], [trajectory])[0]

    def scores(self, prompts: Sequence[Prompt], trajectories: Sequence[Trajectory]) -> list[Score]:
        """All scores of a step."""
        scenes = [scene_of(trajectory) for trajectory in trajectories]
        planned = _shares([scene for scene in scenes if scene is not None])
        by_text = {prompt.text: prompt for prompt in prompts}
        truth = _shares([scene for prompt in by_text.values() for scene in _own(prompt)])
        found = []
        for scene in scenes:
            rarity = [np.log(truth[thing.size] / planned[thing.size]) for thing in scene.things] if scene else []
            value = float(np.clip(np.mean(rarity), -CLIPPED, CLIPPED)) if rarity else 0.0
            found.append(Score(value))
        return found


def _own(prompt: Prompt) -> list[world.Scene]:
    """Scenes of a prompt by the world, always the same."""
    request, scenes = request_of(prompt), list[world.Scene]()
    rng = np.random.default_rng(list(prompt.text.encode()))
    for _ in range(4):
        try:
            scenes.append(world.sample_scene(request, rng))
        except ValueError:  # no room this time
            continue
    return scenes


def _shares(scenes: Sequence[world.Scene]) -> dict[str, float]:
    """The share of each size among all things, one added to every count."""
    counts = dict.fromkeys(world.SIZES, 1.0)
    for scene in scenes:
        for thing in scene.things:
            counts[thing.size] += 1
    return {size: count / sum(counts.values()) for size, count in counts.items()}
