"""How good a model's plans are, without drawing: right by the world's rules, and verifiable by a detector.

``python -m irg_mini.measure.plans --model mini`` lets the model think about crowded prompts (those of
``irg bench mini --prompt-set crowded``) and prints, in % with 95 % intervals: plans that satisfy their prompt; plans
whose rendering by the world the detector accepts; and how often each size is used. What a run by reward changes in
irg-mini's planner (``recipes/mini/rl-plan.yaml``) shows here in a minute.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import tyro

from irg.engine.ops import Program, Say, Write
from irg.evaluation.statistics import Estimate, share
from irg.reasoning.pipeline import IRGPipeline
from irg_mini import world
from irg_mini.measure.prompts import crowded_requests, held_out_requests
from irg_mini.world.detector import EVAL_DETECTOR, Detector
from irg_mini.world.rules import SCORE_THRESHOLD

SIZE = 128
BATCH = 100


@dataclass(frozen=True)
class PlanMeasure:
    """What is measured."""

    model: str = "mini"
    detector: str = EVAL_DETECTOR
    """Which detector looks at the renderings; no training used the default one."""
    prompts: int = 300
    prompt_set: Literal["crowded", "held-out"] = "crowded"
    seed: int = 0
    temperature: float = 0.3


@dataclass(frozen=True)
class Planned:
    """One plan: the prompt's form and text, whether it is right, whether its rendering is accepted, and its sizes."""

    tag: str
    prompt: str
    text: str
    right: bool
    accepted: bool
    sizes: tuple[str, ...]


def plans(measure: PlanMeasure) -> list[Planned]:
    """Let the model plan, and look at the plans.

    Raises:
        ValueError: there is no such model or detector, or the sprites are missing.
    """
    detector = Detector.load(measure.detector)
    choose = crowded_requests if measure.prompt_set == "crowded" else held_out_requests
    requests = choose(measure.prompts, measure.seed, detector.config.names)
    texts = _thinking(measure, [world.caption(request) for request in requests])
    return [_planned(request, text, detector) for request, text in zip(requests, texts, strict=True)]


def _thinking(measure: PlanMeasure, prompts: Sequence[str]) -> list[str]:
    pipe = IRGPipeline.from_pretrained(measure.model)
    engine, system = pipe.engine, pipe.profile.system_prompt
    write = Write(pipe.defaults.max_think_tokens, measure.temperature)

    def program(prompt: str) -> Program:
        if system:
            yield Say(system)
        yield Say(prompt)
        return (yield write).text

    texts: list[str] = []
    for start in range(0, len(prompts), BATCH):
        some = prompts[start : start + BATCH]
        texts += engine.run([(program(prompt), measure.seed + start + i) for i, prompt in enumerate(some)])
    return texts


def _planned(request: world.Request, text: str, detector: Detector) -> Planned:
    prompt = world.caption(request)
    try:
        scene = world.parse_layout(text)
    except ValueError:
        return Planned(request.tag, prompt, text, False, False, ())
    right = world.satisfied(request, world.see(scene, SIZE))
    pixels = world.render(scene, SIZE, world.load_sprites())
    seen = detector.detect(pixels[None], threshold=SCORE_THRESHOLD)[0]
    accepted = world.satisfied(request, seen, threshold=SCORE_THRESHOLD)
    return Planned(request.tag, prompt, text, right, accepted, tuple(thing.size for thing in scene.things))


def table(found: Sequence[Planned]) -> str:
    """Markdown: a row per form, and all; then the sizes."""
    lines = ["| | plans right | rendering accepted | n |", "|---|---|---|---|"]
    for tag in [*dict.fromkeys(one.tag for one in found), "all"]:
        some = [one for one in found if tag in (one.tag, "all")]
        cells = [
            _cell(share([(float(value), 1.0) for value in values]))
            for values in ([one.right for one in some], [one.accepted for one in some])
        ]
        lines.append(f"| {tag} | {' | '.join(cells)} | {len(some)} |")
    sizes = Counter(size for one in found for size in one.sizes)
    total = max(1, sum(sizes.values()))
    return "\n".join([*lines, "", "sizes: " + ", ".join(f"{s} {sizes[s] / total:.0%}" for s in world.SIZES)])


def _cell(value: Estimate) -> str:
    if value.value is None or value.low is None or value.high is None:
        return "–"
    return f"{100 * value.value:.1f} ({100 * value.low:.1f}–{100 * value.high:.1f})"


def main() -> None:
    """Run from the command line."""
    print(table(plans(tyro.cli(PlanMeasure, description=__doc__))))


if __name__ == "__main__":
    main()
