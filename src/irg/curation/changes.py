"""What was built before in a folder, and what changed settings mean for it."""

import json
from dataclasses import asdict

from irg import files
from irg.curation.build_folder import BuildFolder
from irg.curation.stages import PROMPT_COLUMNS
from irg.curation.store import StageFolder


def write_state(folder: BuildFolder) -> None:
    """Keep the recipe and the stages' folders of this build."""
    import yaml

    plain = json.loads(json.dumps(asdict(folder.recipe)))
    files.write_text(folder.out / "recipe.yaml", yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))
    files.write_json(folder.out / "state.json", folder.keys)


def last_keys(folder: BuildFolder) -> dict[str, str]:
    """The stages' folders of the last build here; empty before the first.

    Raises:
        ValueError: the file that lists them is damaged.
    """
    state = folder.out / "state.json"
    try:
        keys: dict[str, str] = json.loads(state.read_text(encoding="utf-8")) if state.exists() else {}
    except ValueError as error:
        raise ValueError(f"{state}: damaged ({error}); delete it (changed settings then go unnoticed once)") from error
    return keys


def check_prompts(folder: BuildFolder, before: dict[str, str], redo: bool) -> None:
    """Check that rows which were paid for are not silently dropped for others.

    Raises:
        ValueError: the prompts have changed so that rows which cost money are not part of the build any more, without
            ``redo``.
    """
    if redo or before.get("prompts") in (None, folder.keys["prompts"]):
        return
    old = StageFolder(folder.prompts.path.with_name(before["prompts"]), PROMPT_COLUMNS)
    wanted = {name for block in folder.blocks() for name in folder.prompts.read(block, ["id"])}
    gone = {name for block in old.blocks() for name in old.read(block, ["id"]) if name not in wanted}
    rows, cost = 0, 0.0
    for stage_folder in folder.stage_folders.values():
        for block in stage_folder.blocks() if gone else ():
            paid = [row["cost"] for name, row in stage_folder.read(block, ["id", "cost"]).items() if name in gone]
            rows, cost = rows + sum(one > 0 for one in paid), cost + sum(paid)
    if cost:
        raise ValueError(
            f"prompts: they have changed (sources, seed, first_turns or samples), and {rows:,} results that cost "
            f"{cost:.2f} are of prompts that are not in the recipe any more; give --redo to go on, or build into "
            "another folder"
        )


def check_changes(folder: BuildFolder, before: dict[str, str], redo: bool) -> list[str]:
    """Lines for the user: what changed settings mean for what is there.

    Raises:
        ValueError: rows that cost money would be made again, and ``redo`` is not given.
    """
    lines = []
    for name, stage_folder in folder.stage_folders.items():
        if before.get(name) in (None, folder.keys[name]) or stage_folder.path.is_dir():
            continue
        old = StageFolder(stage_folder.path.with_name(before[name]), stage_folder.columns)
        rows, cost = _rows_and_cost(old)
        if cost and not redo:
            raise ValueError(
                f"{name}: its settings (or those of a stage it reads) have changed: {rows:,} rows that cost {cost:.2f} "
                "would be made again; give --redo to do that, or build into another folder"
            )
        if rows:
            lines.append(f"{name}: settings have changed; its {rows:,} rows are made again, the old ones are kept")
    return lines


def _rows_and_cost(folder: StageFolder) -> tuple[int, float]:
    rows, cost = 0, 0.0
    for block in folder.blocks():
        found = folder.read(block, ["id", "cost"])
        rows += len(found)
        cost += sum(row["cost"] for row in found.values())
    return rows, cost
