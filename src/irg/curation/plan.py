"""From a recipe to its stages, in order."""

import importlib.util
import io
from pathlib import Path
from typing import Any

from irg.curation.models import DiffusersPainting, ModelDrafting, ModelPainting
from irg.curation.recipe import (
    DataRecipe,
    DiffusersTargets,
    EndpointJudge,
    EndpointReflections,
    EndpointTargets,
    EndpointThinking,
    MiniDrafts,
    MiniReflections,
    MiniTargets,
    ModelDrafts,
    ModelTargets,
)
from irg.curation.stages import Outcome, Stage, Workbench, made
from irg.curation.store import Row, StageFolder
from irg.curation.vlm import (
    EndpointJudging,
    EndpointPainting,
    EndpointReflecting,
    EndpointStage,
    EndpointThinkingStage,
    judge_columns,
)
from irg.recipes import choose
from irg_mini.data.stages import WorldStage


class Hashing(Stage):
    """Perceptual hashes of the images, 16 hex digits each."""

    name, columns, reads = "hash", {"image_phash": str, "improved_phash": str}, ("draft", "target")

    async def open(self, bench: Workbench) -> None:
        if importlib.util.find_spec("imagehash") is None:
            raise ValueError("hashes need the package imagehash: pip install 'irg[data]'")
        self.bench = bench

    async def make(self, rows: list[Row]) -> list[Outcome]:
        hashed: list[Outcome] = await self.bench.apart(_hash_rows, rows)
        return hashed


def _hash_rows(rows: list[Row]) -> list[Row]:
    def hashes(row: Row) -> dict[str, Any]:
        return {f"{name}_phash": phash(row[name]) if row.get(name) else None for name in ("image", "improved")}

    return [made(row, {"model": "imagehash.phash"}, **hashes(row)) for row in rows]


def phash(image: bytes) -> str:
    """Perceptual hash of an image (64 bits of its coarse cosine transform)."""
    import imagehash
    from PIL import Image

    with Image.open(io.BytesIO(image)) as opened:
        return str(imagehash.phash(opened.convert("RGB")))


def row_stages(recipe: DataRecipe) -> list[Stage]:
    """The stages that make rows, in order, each knowing what it reads.

    Raises:
        ValueError: they do not fit together.
    """
    _check(recipe)
    stages = [one for one in (_draft(recipe), *_second(recipe), _think(recipe)) if one is not None]
    stages += [_judge(judge) for judge in recipe.judges]
    if recipe.hashes:
        stages.append(Hashing(None))
    if recipe.engine == "ray":
        _place(recipe, stages)
    return stages


def _place(recipe: DataRecipe, stages: list[Stage]) -> None:
    """See to it that Ray's settings are for stages that there are, and tell stages of their local vLLMs."""
    names = [stage.name for stage in stages]
    chatting = {stage.name: stage for stage in stages if isinstance(stage, EndpointStage) and stage.chats}
    for field in ("workers", "gpus"):
        for name in getattr(recipe.ray, field):
            if name not in names:
                raise ValueError(f"ray.{field}: no stage {name!r}{choose(name, names)}; there are {', '.join(names)}")
    for name, local in recipe.ray.vllm.items():
        if name not in chatting:
            raise ValueError(
                f"ray.vllm: {name!r} is no stage that asks a vision-language endpoint{choose(name, chatting)}; "
                f"those that do: {', '.join(chatting) or 'none'}"
            )
        chatting[name].answered_by(local)


def _draft(recipe: DataRecipe) -> Stage | None:
    match recipe.draft:
        case ModelDrafts() as config:
            return ModelDrafting(config)
        case MiniDrafts() as config:
            return WorldStage(config, "draft", {"thinking": str, "image": bytes, "truth": str})
    return None


def _second(recipe: DataRecipe) -> list[Stage | None]:
    """Reflect and target in the order of the recipe's way."""
    refine = recipe.way == "refine"
    reflect: Stage | None = None
    target: Stage | None = None
    match recipe.reflect:
        case EndpointReflections() as config:
            reflect = EndpointReflecting(config, compare=not refine)
        case MiniReflections() as config:
            reflect = WorldStage(config, "reflect", {"reflection": str})
    match recipe.target:
        case EndpointTargets() as painter:
            target = EndpointPainting(painter)
        case DiffusersTargets() as painter:
            target = DiffusersPainting(painter)
        case ModelTargets() as painter:
            target = ModelPainting(painter)
        case MiniTargets() as painter:
            target = WorldStage(painter, "target", {"improved": bytes})
    if reflect is not None:
        reflect.reads = ("draft",) if refine else ("draft", "target")
    if target is not None:
        target.reads = ("draft", "reflect") if refine else ()
    return [reflect, target] if refine else [target, reflect]


def _think(recipe: DataRecipe) -> Stage | None:
    stage: Stage
    if recipe.think is None:
        return None
    if isinstance(recipe.think, EndpointThinking):
        stage = EndpointThinkingStage(recipe.think)
    else:
        stage = WorldStage(recipe.think, "think", {"thought": str})
    stage.reads = ("target",)
    return stage


def _judge(config: Any) -> Stage:
    stage: Stage
    if isinstance(config, EndpointJudge):
        stage = EndpointJudging(config)
        stage.reads = ("draft", "target")
    else:
        stage = WorldStage(config, f"judge-{config.name}", judge_columns(config.name))
        stage.reads = ("draft", "reflect", "target")
    return stage


def _check(recipe: DataRecipe) -> None:
    edits = getattr(recipe.target, "edit", False)
    if recipe.way == "independent":
        if edits:
            raise ValueError("way: independent draws targets from the prompt alone; set target.edit to false")
        if isinstance(recipe.target, MiniTargets) or isinstance(recipe.reflect, MiniReflections):
            raise ValueError("the mini world mends drafts; it needs way: refine")
    if isinstance(recipe.target, MiniTargets) and recipe.reflect and not isinstance(recipe.reflect, MiniReflections):
        raise ValueError("target.kind miniworld renders the oracle's layouts; it needs reflect.kind miniworld")
    if isinstance(recipe.target, ModelTargets | DiffusersTargets):
        for judge in recipe.judges:
            if getattr(judge, "detector", "") is None:
                raise ValueError(f"judges: {judge.name} knows only rendered images; set its detector (mini-judge)")
    blind = isinstance(recipe.reflect, MiniReflections) and recipe.reflect.detector is None
    if isinstance(recipe.draft, ModelDrafts) and blind:
        raise ValueError("reflect: drafts of a model must be seen; set reflect.detector (such as mini-judge)")
    if recipe.reflect is not None and (recipe.draft is None):
        raise ValueError("reflect needs draft: there is nothing to reflect on")
    endpoints = [recipe.reflect, recipe.target, recipe.think, *recipe.judges]
    if any(hasattr(one, "endpoint") for one in endpoints):
        for package in ("openai", "tenacity"):
            if importlib.util.find_spec(package) is None:
                raise ValueError(f"endpoints need the package {package}: pip install 'irg[data]'")


def folders(recipe: DataRecipe, stages: list[Stage]) -> dict[str, StageFolder]:
    """Each stage's folder, by its name."""
    keys: dict[str, str] = {}
    found = {}
    for stage in stages:
        keys[stage.name] = stage.key(keys)
        path = Path(recipe.out) / "stages" / f"{stage.name}-{keys[stage.name]}"
        found[stage.name] = StageFolder(path, stage.columns)
    return found
