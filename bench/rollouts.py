"""Tokens a second of rollouts against plain decoding of the same texts: ``python bench/rollouts.py``.

The texts of a step of training by reward are written in three ways, in turns, in one process: **forked** K ways behind
one shared prefix, all prompts together, as ``irg train`` does; **together**, each text behind a prefix of its own; and
**one by one**. The same seeds should give the same texts: the share is told. Thinkings have a short prefix, the prompt;
reflections have an image in it. Results are in ``docs/rl.md``.
"""

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro

from engine import PROMPTS, Case, build_case
from engine import Options as CaseOptions
from irg.engine.ops import Write, Written
from irg.files import write_json
from irg.learning.data.samples import TrajectoryEncoder
from irg.learning.rl.prompts import Prompt
from irg.learning.rl.recipe import Drawing
from irg.learning.rl.rollouts import roll_out
from irg.learning.rl.trajectories import first_turns
from irg.model.weights.folders import model_folder
from irg.model.weights.profile import read_profile
from irg.reasoning.prompts import BAGEL_PROFILE

WAYS = ("forked", "together", "one by one")
TEXTS = ("thinking", "reflection")


@dataclass
class Options:
    """Compare tokens a second of rollouts with those of plain decoding."""

    model: str = "mini"
    """mini, mid (random weights, 512 wide, 12 layers), tiny (a test), or a model folder."""
    prompts: int = 8
    """Of a step."""
    samples: int = 8
    """Texts of each prompt."""
    max_tokens: int = 160
    """Of a text."""
    repeats: int = 5
    """Timed runs of each way; the order rotates."""
    threads: int | None = None
    """Of torch; default: its own choice."""
    json: Path | None = None
    """Write all numbers to this file."""


def written(
    case: Case, encoder: TrajectoryEncoder, prompts: Sequence[Prompt], options: Options, way: str
) -> list[Written]:
    """All texts of a step, by prompt; whichever the way, a text has the same seed."""
    write = Write(options.max_tokens, temperature=1.0, logprobs=True)
    seeds = np.arange(len(prompts) * options.samples).reshape(len(prompts), -1).tolist()
    if way != "forked":  # each text is a group of its own
        prompts = [prompt for prompt in prompts for _ in range(options.samples)]
        seeds = [[seed] for own in seeds for seed in own]
    at_once = 1 if way == "one by one" else 0
    groups = roll_out(case.model, case.autoencoder, encoder, prompts, write, seeds, at_once)
    return [text for group in groups for text in group.texts]


def timed(run: Callable[[str], list[Written]], repeats: int) -> dict[str, float]:
    """Median tokens a second of each way, all of them once in every round."""
    speeds: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(repeats):
        for way in (*WAYS[number % len(WAYS) :], *WAYS[: number % len(WAYS)]):
            started = time.perf_counter()
            texts = run(way)
            speeds[way].append(sum(len(text.ids) + 1 for text in texts) / (time.perf_counter() - started))
    return {way: statistics.median(found) for way, found in speeds.items()}


def main(options: Options) -> int:
    """Measure and print; returns the exit code."""
    if options.threads:
        torch.set_num_threads(options.threads)
    case = build_case(CaseOptions(options.model, concurrent=options.prompts))
    profile = BAGEL_PROFILE if options.model in ("mid", "tiny") else read_profile(model_folder(options.model))
    encoder = TrajectoryEncoder(case.model.config, case.tokenizer, profile or BAGEL_PROFILE)
    asked = [Prompt(PROMPTS[i % len(PROMPTS)]) for i in range(options.prompts)]
    side = case.jobs[0].width
    drawing, write = Drawing(side, side, num_timesteps=8), Write(options.max_tokens)
    drawn = first_turns(case.model, case.autoencoder, encoder, asked, write, drawing, list(range(len(asked))))
    report, print_row = {}, "| {} | {} | {} | {} | {:.2f}x | {:.2f}x | {:.1%} |".format
    print(f"{options.prompts} prompts x {options.samples} texts, tokens a second, median of {options.repeats} runs:\n")
    print(f"| text | {' | '.join(WAYS)} | forked / together | forked / one by one | equal texts |\n|---|{'---:|' * 6}")
    for kind, prompts in zip(TEXTS, (asked, drawn), strict=True):

        def run(way: str, prompts: Sequence[Prompt] = prompts) -> list[Written]:
            return written(case, encoder, prompts, options, way)

        ids = [[text.ids for text in run(way)] for way in WAYS]
        equal = sum(a == b == c for a, b, c in zip(*ids, strict=True)) / len(ids[0])
        speeds = timed(run, options.repeats)
        forked, together, alone = (speeds[way] for way in WAYS)
        report[kind] = {"tokens_per_second": speeds, "equal_texts": equal}
        print(print_row(kind, *(f"{speeds[way]:,.0f}" for way in WAYS), forked / together, forked / alone, equal))
    if options.json:
        write_json(options.json, report)
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
