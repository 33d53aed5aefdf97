"""``irg train RECIPE.yaml [--dry-run] [--field value ...]`` and ``irg train report RUN``."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from irg.learning.recipe import TrainRecipe

_USAGE = """usage: irg train RECIPE.yaml [--dry-run [--gpus N]] [--force] [--field value ...]
       irg train report RUN [--out FILE.html]

Train a model as the recipe says; one of the kind rl learns by reward. Any field of the recipe can be set from the
command line; nested fields are named with dots:

  irg train recipes/mini-stage1.yaml --steps 200 --optimizer.lr 1e-4
  torchrun --nproc-per-node 8 -m irg train recipes/irg-7b-stage1.yaml

A field that is unknown or of the wrong type is an error that names it. A run that was interrupted goes on where its
last checkpoint stands.

  --dry-run   train nothing: print the resolved recipe, samples and tokens per pack, trained parameters, memory per GPU
              and operations per step, and every mistake that can be found. Exit code 2 if there is one. --model may be
              bagel_7b, mini or tiny: the sizes alone, where the weights are not on this machine
  --gpus N    with --dry-run: how many GPUs the run is meant for
  --force     go on in a folder whose run was made with another recipe, or with another number of packs a step

irg train report RUN writes one page about a run's folder, also while it trains: curves of every logged figure, samples
over steps, texts of rollouts, the recipe (default: RUN/report.html). It needs no other file and no network."""


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Raises:
        ValueError: the recipe is missing or wrong.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(_USAGE)
        return 0 if argv else 2
    if argv[0] == "report":
        return _report(argv[1:])
    path, *overrides = argv
    if path.startswith("-"):
        raise ValueError(f"the recipe's file comes first, got {path!r} (see irg train --help)")
    flags = {flag: flag in overrides for flag in ("--dry-run", "--force")}
    overrides = [word for word in overrides if word not in flags]
    gpus = _taken(overrides, "--gpus")
    if gpus is not None and not flags["--dry-run"]:
        raise ValueError("--gpus goes with --dry-run; a run has the processes that torchrun starts")
    from irg import recipes

    by_reward = recipes.peek(path, "kind") == "rl"
    return (_by_reward if by_reward else _supervised)(path, overrides, flags["--dry-run"], flags["--force"], gpus)


def _report(argv: Sequence[str]) -> int:
    words = list(argv)
    if not words or words[0] in ("-h", "--help"):
        print(_USAGE)
        return 0 if words else 2
    run, *rest = words
    if rest and (rest[0] != "--out" or len(rest) != 2):
        raise ValueError(f"irg train report takes a run's folder and --out FILE.html, not {' '.join(rest)!r}")
    from irg.learning.run_report import write_report

    print(f"Written to {write_report(Path(run), Path(rest[1]) if rest else None)}")
    return 0


def _supervised(path: str, overrides: Sequence[str], dry_run: bool, force: bool, gpus: int | None) -> int:
    from irg import recipes
    from irg.learning.recipe import TrainRecipe

    recipe = recipes.load(TrainRecipe, path, overrides)
    if dry_run:
        from irg.learning.plan import make_plan, report

        plan = make_plan(recipe, gpus)
        print(report(plan))
        return 2 if plan.problems else 0
    from irg.learning.trainer import train

    return _train(train, recipe, force)


def _by_reward(path: str, overrides: Sequence[str], dry_run: bool, force: bool, gpus: int | None) -> int:
    from irg import recipes
    from irg.learning.rl.recipe import RLRecipe

    recipe = recipes.load(RLRecipe, path, overrides)
    if dry_run:
        from irg.learning.rl.plan import make_plan, report

        plan = make_plan(recipe, gpus)
        print(report(plan))
        return 2 if plan.problems else 0
    from irg.learning.rl.run import train_by_reward

    return _train(train_by_reward, recipe, force)


def _train(train: Callable[..., Path], recipe: "TrainRecipe", force: bool) -> int:
    """Run a recipe; the main process says where the result is."""
    from irg.learning.parallel import leave

    try:
        folder = train(recipe, force=force)
    finally:
        leave()
    if os.environ.get("RANK", "0") == "0":
        print(f"Written to {folder}")
    return 0


def _taken(words: list[str], name: str) -> int | None:
    """Take a flag and its whole number out of the words."""
    for index, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag == name:
            value = value if equals else words[index + 1] if index + 1 < len(words) else ""
            del words[index : index + (1 if equals else 2)]
            if not value.isdecimal() or int(value) < 1:
                raise ValueError(f"{name}: expected a whole number of at least 1, got {value!r}")
            return int(value)
    return None
