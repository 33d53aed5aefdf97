"""The folder of a build: its stages, and where their rows lie."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from irg.curation import filter as filtering
from irg.curation import prompt_rows
from irg.curation.plan import folders, row_stages
from irg.curation.recipe import DataRecipe
from irg.curation.stages import PROMPT_COLUMNS, Stage
from irg.curation.store import Row, StageFolder


@dataclass
class BuildFolder:
    """A recipe's stages and where their rows lie.

    Attributes:
        filtered: the filter's verdicts on prompts; None: the recipe filters nothing.
        stage_folders: by the names of ``stages``.
        keys: names of all folders, which change with what decides their content.
    """

    recipe: DataRecipe
    stages: list[Stage]
    prompts: StageFolder
    filtered: StageFolder | None
    stage_folders: dict[str, StageFolder]
    keys: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, recipe: DataRecipe, prompt_filter: filtering.PromptFilter | None = None) -> "BuildFolder":
        """The folder of a recipe.

        Raises:
            ValueError: the recipe's parts do not fit together, or a file it names is missing.
        """
        stages = row_stages(recipe)
        base, prompts_key = Path(recipe.out) / "stages", prompt_rows.key(recipe)
        filtered = None
        if not filtering.passes_all(recipe.filter):
            prompt_filter = prompt_filter or filtering.PromptFilter(recipe.filter)
            filtered = StageFolder(base / f"filter-{prompt_filter.key(prompts_key)}", filtering.COLUMNS)
        stage_folders = folders(recipe, stages)
        prompts = StageFolder(base / f"prompts-{prompts_key}", PROMPT_COLUMNS)
        every = {"prompts": prompts, **({"filter": filtered} if filtered else {}), **stage_folders}
        keys = {name: folder.path.name for name, folder in every.items()}
        return cls(recipe, stages, prompts, filtered, stage_folders, keys)

    @property
    def out(self) -> Path:
        return Path(self.recipe.out)

    @property
    def lock(self) -> Path:
        return self.out / "build.lock"

    @property
    def lock_refusal(self) -> str:
        """What to say when another process holds the lock."""
        return f"{self.out}: another build is at work here; wait for it or stop it first"

    @property
    def answers(self) -> Path:
        """Where the answers of endpoints are kept."""
        return self.out / "answers"

    def blocks(self) -> list[int]:
        """All blocks; before the prompts are complete, those that are there."""
        return self.prompts.blocks()

    def accepted(self, block: int, before: str | None = None) -> list[str]:
        """Ids of a block's rows, in order, that the filter and all stages (``before`` the named one) have accepted, as
        far as the rows are theirs."""
        turns = {name: row["turns"] for name, row in self.prompts.read(block, ["id", "turns"]).items()}
        if self.filtered is not None:
            verdicts = self.filtered.read(block, ["id", "rejected"])
            turns = {n: t for n, t in turns.items() if n in verdicts and verdicts[n]["rejected"] is None}
        for stage in self.stages:
            if stage.name == before:
                return [name for name, count in turns.items() if count in stage.turns]
            if not any(count in stage.turns for count in turns.values()):
                continue
            rows = self.stage_folders[stage.name].read(block, ["id", "rejected"])
            passed = {name for name, row in rows.items() if row["rejected"] is None}
            turns = {n: t for n, t in turns.items() if t not in stage.turns or n in passed}
        assert before is None, before
        return list(turns)

    def pending(self, stage: Stage, block: int) -> list[str]:
        """Ids of a block's rows that a stage has still to make: an anti-join of what has come this far and what is
        there.

        Raises:
            ValueError: a file is damaged.
        """
        there = self.stage_folders[stage.name].read(block, ["id"])
        return [name for name in self.accepted(block, before=stage.name) if name not in there]

    def rows(self, block: int, ids: Sequence[str], stage: Stage) -> list[Row]:
        """The columns of rows that a stage gets."""
        found = self.prompts.read(block)
        joined = {name: {"id": name, **{c: found[name][c] for c in PROMPT_COLUMNS}} for name in ids}
        for name in stage.reads:
            if name in self.stage_folders:
                folder = self.stage_folders[name]
                for row in folder.read(block, ["id", *folder.columns]).values():
                    if row["id"] in joined:
                        joined[row["id"]].update(row)
        return list(joined.values())

    def without_open_stages(self) -> "BuildFolder":
        """The same with stages that have no clients or models open, so that it can be sent to another process."""
        stages = row_stages(self.recipe)
        return BuildFolder(self.recipe, stages, self.prompts, self.filtered, self.stage_folders, self.keys)
