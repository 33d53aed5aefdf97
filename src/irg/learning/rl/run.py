"""A run by reward from its recipe: the trainer of its policy."""

from pathlib import Path

from irg.learning.rl.drawing_trainer import DrawingTrainer
from irg.learning.rl.recipe import RLRecipe
from irg.learning.rl.trainer import RLTrainer
from irg.learning.rl.trajectory_trainer import TrajectoryTrainer
from irg.learning.trainer import train


def train_by_reward(recipe: RLRecipe, quiet: bool = False, force: bool = False) -> Path:
    """Run a recipe to its end and return the exported model folder.

    Raises:
        ValueError: see :func:`irg.learning.trainer.train`; or a limit of the recipe was passed.
    """
    return train(recipe, quiet, force, trainer_of(recipe))


def trainer_of(recipe: RLRecipe) -> type[RLTrainer]:
    """The trainer of a recipe's policy."""
    trainers: dict[str, type[RLTrainer]] = {"drawing": DrawingTrainer, "trajectory": TrajectoryTrainer}
    return trainers.get(recipe.policy, RLTrainer)
