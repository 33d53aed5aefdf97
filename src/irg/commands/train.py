"""``irg train RECIPE.yaml [--field value ...]``."""

from collections.abc import Sequence

_USAGE = """usage: irg train RECIPE.yaml [--field value ...]

Train a model as the recipe says. Any field of the recipe can be set from the command line; nested fields are named
with dots:

  irg train recipes/mini-stage1.yaml --steps 200 --optimizer.lr 1e-4

A field that is unknown or of the wrong type is an error that names it. A run that was interrupted goes on where its
last checkpoint stands."""


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Raises:
        ValueError: the recipe is missing or wrong.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(_USAGE)
        return 0 if argv else 2
    path, *overrides = argv
    if path.startswith("-"):
        raise ValueError(f"the recipe's file comes first, got {path!r} (see irg train --help)")
    from irg import recipes
    from irg.learning.recipe import TrainRecipe

    recipe = recipes.load(TrainRecipe, path, overrides)
    from irg.learning.trainer import train

    train(recipe)
    return 0
