"""From a recipe to its stages, in order."""

from pathlib import Path
from typing import Any

from irg.curation.endpoint_stages import EndpointStage
from irg.curation.hashes import HashStage
from irg.curation.parts import Parts
from irg.curation.recipe import DataRecipe
from irg.curation.stages import Stage, score_columns
from irg.curation.store import StageFolder
from irg.recipes import choose

_ORDER = {
    "refine": ("draft", "reflect", "target", "think"),
    "independent": ("draft", "target", "reflect", "think"),
}
_READS: dict[str, dict[str, tuple[str, ...]]] = {
    "refine": {"draft": (), "reflect": ("draft",), "target": ("draft", "reflect"), "think": ("target",)},
    "independent": {"draft": (), "reflect": ("draft", "target"), "target": (), "think": ("target",)},
}
_TURNS = {"draft": (2,), "reflect": (2,), "target": (1, 2), "think": (1,)}
_COLUMNS: dict[str, dict[str, type]] = {
    "draft": {"thinking": str, "image": bytes},
    "reflect": {"reflection": str},
    "target": {"improved": bytes},
    "think": {"thought": str},
}


def row_stages(recipe: DataRecipe) -> list[Stage]:
    """The stages that make rows, in order, each with its name and what it reads.

    Raises:
        ValueError: they do not fit together.
    """
    parts = recipe.parts
    if recipe.reflect is not None and recipe.draft is None:
        raise ValueError("reflect needs draft: there is nothing to reflect on")
    for part in parts:
        part.check(parts)
    stages = [_stage(name, parts) for name in _ORDER[parts.strategy] if getattr(parts, name) is not None]
    stages += [_judge_stage(judge, parts) for judge in recipe.judges]
    if recipe.hashes:
        stages.append(HashStage(None))
    if recipe.engine == "ray":
        _check_ray(recipe, stages)
    return stages


def lacking_stages(recipe: DataRecipe) -> list[str]:
    """Lines for the user: rows that a recipe makes and that can be neither shown nor exported, for want of a stage."""
    share = recipe.prompts.first_turns
    found = []
    for turns, wanted, there in ((1, ("think", "target"), share > 0), (2, ("draft", "reflect", "target"), share < 1)):
        missing = [name for name in wanted if getattr(recipe, name) is None]
        if there and missing and len(missing) < len(wanted):
            found.append(
                f"rows of {turns} turn{'s' * (turns > 1)} lack the stage {' and '.join(missing)}: they can't be "
                f"sampled or exported (prompts.first_turns {share:g} decides how many there are)"
            )
    return found


def _stage(name: str, parts: Parts) -> Stage:
    stage: Stage = getattr(parts, name).stage(parts)
    stage.name, stage.turns = name, _TURNS[name]
    stage.reads = stage.reads or _READS[parts.strategy][name]
    return _checked(stage, _COLUMNS[name])


def _judge_stage(judge: Any, parts: Parts) -> Stage:
    stage: Stage = judge.stage(parts)
    stage.name = f"judge-{judge.name}"
    stage.reads = stage.reads or ("draft", "target")
    return _checked(stage, score_columns(judge.name))


def _checked(stage: Stage, columns: dict[str, type]) -> Stage:
    """The stage, if it has the columns of its role: other stages and the export count on them."""
    if missing := [name for name, kind in columns.items() if stage.columns.get(name) is not kind]:
        kind = getattr(stage.config, "kind", "?")
        raise ValueError(f"{stage.name}: the stage of kind {kind} makes no column {', '.join(missing)}")
    return stage


def _check_ray(recipe: DataRecipe, stages: list[Stage]) -> None:
    """Check that Ray's settings are for stages that there are; stages with a local vLLM take answers offline."""
    names = [stage.name for stage in stages]
    chatting = {stage.name: stage for stage in stages if isinstance(stage, EndpointStage) and stage.chats}
    for field in ("workers", "gpus"):
        for name in getattr(recipe.ray, field):
            if name not in names:
                raise ValueError(f"ray.{field}: no stage {name!r}{choose(name, names)}; there are {', '.join(names)}")
    for name in recipe.ray.vllm:
        if name not in chatting:
            raise ValueError(
                f"ray.vllm: {name!r} is no stage that calls a vision-language endpoint{choose(name, chatting)}; "
                f"those that do: {', '.join(chatting) or 'none'}"
            )
        chatting[name].answer_offline()


def folders(recipe: DataRecipe, stages: list[Stage]) -> dict[str, StageFolder]:
    """Each stage's folder, by its name."""
    keys: dict[str, str] = {}
    found = {}
    for stage in stages:
        keys[stage.name] = stage.key(keys)
        path = Path(recipe.out) / "stages" / f"{stage.name}-{keys[stage.name]}"
        found[stage.name] = StageFolder(path, stage.columns)
    return found
