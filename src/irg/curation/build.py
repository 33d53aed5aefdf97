"""Building: prompts, sift, then every block through the stages. ``docs/data.md`` tells what is promised."""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from irg.curation import filter as sifting
from irg.curation import sources
from irg.curation.plan import folders, row_stages
from irg.curation.recipe import DataRecipe
from irg.curation.stages import PROMPT_COLUMNS, Stage, Workbench
from irg.curation.store import Lock, Row, StageFolder, sweep, write_text
from irg.endpoints import AnswerCache, EndpointError

TOKENS_IN, TOKENS_OUT = 2000, 600  # taken for a call of which nothing is known yet
Told = Callable[[str, int, int, float], None]
"""Called as told(stage, rows made, how many of them rejected, what they cost)."""


@dataclass
class Layout:
    """A recipe's stages and where their rows lie."""

    recipe: DataRecipe
    stages: list[Stage]
    prompts: StageFolder
    sift: StageFolder | None
    made: dict[str, StageFolder]
    keys: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, recipe: DataRecipe, sieve: "sifting.Sieve | None" = None) -> "Layout":
        """Lay out a recipe.

        Raises:
            ValueError: its parts do not fit together, or a file it names is missing.
        """
        stages = row_stages(recipe)
        base, prompts_key = Path(recipe.out) / "stages", sources.key(recipe)
        sift = None
        if not sifting.passes_all(recipe.sift):
            sieve = sieve or sifting.Sieve(recipe.sift)
            sift = StageFolder(base / f"sift-{sieve.key(prompts_key)}", sifting.COLUMNS)
        made = folders(recipe, stages)
        prompts = StageFolder(base / f"prompts-{prompts_key}", PROMPT_COLUMNS)
        every = {"prompts": prompts, **({"sift": sift} if sift else {}), **made}
        return cls(recipe, stages, prompts, sift, made, {name: f.path.name for name, f in every.items()})

    @property
    def out(self) -> Path:
        return Path(self.recipe.out)

    @property
    def answers(self) -> Path:
        return self.out / "answers"

    def blocks(self) -> list[int]:
        """All blocks; before the prompts are complete, those that are there."""
        return self.prompts.blocks()

    def accepted(self, block: int, before: str | None = None) -> list[str]:
        """Ids of a block's rows, in order, that the sift and all stages (``before`` the named one) have let pass and
        are done with, as far as they are theirs."""
        turns = {name: row["turns"] for name, row in self.prompts.read(block, ["id", "turns"]).items()}
        if self.sift is not None:
            verdicts = self.sift.read(block, ["id", "rejected"])
            turns = {n: t for n, t in turns.items() if n in verdicts and verdicts[n]["rejected"] is None}
        for stage in self.stages:
            if stage.name == before:
                return [name for name, count in turns.items() if count in stage.turns]
            if not any(count in stage.turns for count in turns.values()):
                continue
            rows = self.made[stage.name].read(block, ["id", "rejected"])
            passed = {name for name, row in rows.items() if row["rejected"] is None}
            turns = {n: t for n, t in turns.items() if t not in stage.turns or n in passed}
        assert before is None, before
        return list(turns)

    def rows(self, block: int, ids: Sequence[str], stage: Stage) -> list[Row]:
        """What a stage gets to see of rows."""
        found = self.prompts.read(block)
        joined = {name: {"id": name, **{c: found[name][c] for c in PROMPT_COLUMNS}} for name in ids}
        for name in stage.reads:
            if name in self.made:
                folder = self.made[name]
                for row in folder.read(block, ["id", *folder.columns]).values():
                    if row["id"] in joined:
                        joined[row["id"]].update(row)
        return list(joined.values())


async def make_prompts(layout: Layout, bench: Workbench, told: Told) -> None:
    """Write the prompts' blocks; those that are there stay."""
    done = layout.prompts.path / "done.json"
    if done.exists():
        return
    size, block, total = layout.recipe.rows_per_block, 0, 0
    waiting: list[Row] = []
    there = set(layout.blocks())

    def flush() -> None:
        if block not in there:
            layout.prompts.write(block, waiting, whole=True)

    async for row in sources.prompt_rows(layout.recipe, bench):
        waiting.append(row)
        total += 1
        if len(waiting) == size:
            flush()
            told("prompts", len(waiting), 0, 0.0)
            block, waiting = block + 1, []
            await asyncio.sleep(0)
    if waiting:
        flush()
        told("prompts", len(waiting), 0, 0.0)
    write_text(done, json.dumps({"rows": total, "blocks": block + bool(waiting)}) + "\n")


async def sift_prompts(layout: Layout, sieve: sifting.Sieve, told: Told) -> None:
    """Write the verdicts on all prompts, and the report."""
    folder = layout.sift
    assert folder is not None
    done = folder.path / "done.json"
    if done.exists() and (layout.out / "decontamination.json").exists():
        return
    there = set(folder.blocks())
    for block in layout.blocks():  # from the first on: what has passed decides on what comes
        rows = list(layout.prompts.read(block).values())
        verdicts = [sieve.look(row) for row in rows]
        if block not in there:
            folder.write(block, verdicts, whole=True)
        told("sift", len(rows), sum(verdict["rejected"] is not None for verdict in verdicts), 0.0)
        await asyncio.sleep(0)
    sifting.report(folder, layout.prompts, sieve, layout.out)
    write_text(done, "{}\n")


def waiting(layout: Layout, stage: Stage, block: int) -> list[str]:
    """Ids of a block's rows that wait for a stage: an anti-join of what has come this far and what is made.

    Raises:
        ValueError: a file is damaged.
    """
    there = layout.made[stage.name].read(block, ["id"])
    return [name for name in layout.accepted(block, before=stage.name) if name not in there]


async def run_stage(layout: Layout, stage: Stage, block: int, told: Told) -> None:
    """Make the rows of a block that wait for a stage.

    Raises:
        EndpointError, ValueError, OSError: what keeps rows from being made; all others are made and written first.
    """
    folder = layout.made[stage.name]
    ids = layout.accepted(block, before=stage.name)
    there = folder.read(block, ["id"])
    left = [name for name in ids if name not in there]
    size = stage.chunk or len(left) or 1
    for start in range(0, len(left), size):
        rows = layout.rows(block, left[start : start + size], stage)
        outcomes = await stage.make(rows)
        good = [outcome for outcome in outcomes if not isinstance(outcome, Exception)]
        folder.write(block, good, whole=not there and len(good) == len(left))
        refused = sum(row["rejected"] is not None for row in good)
        told(stage.name, len(good), refused, sum(row["cost"] for row in good))
        problem = next((outcome for outcome in outcomes if isinstance(outcome, Exception)), None)
        if problem is not None:
            raise problem
    folder.seal(block, ids)


class _Stop(Exception):
    """Some stage has had to stop; ``problem`` says why."""

    def __init__(self, stage: str, problem: Exception) -> None:
        super().__init__(stage)
        self.stage, self.problem = stage, problem


async def run_files(layout: Layout, bench: Workbench, told: Told) -> None:
    """All blocks through all stages, several at a time, in this process."""
    for stage in layout.stages:
        await stage.open(bench)
    blocks = iter(layout.blocks())
    stopped: list[_Stop] = []

    async def work() -> None:
        for block in blocks:
            for stage in layout.stages:
                if stopped:
                    return
                try:
                    await run_stage(layout, stage, block, told)
                except (EndpointError, ValueError, OSError) as error:
                    stopped.append(_Stop(stage.name, error))
                    return

    await asyncio.gather(*(work() for _ in range(layout.recipe.blocks_at_once)))
    if stopped:
        raise stopped[0]


def build(
    recipe: DataRecipe,
    *,
    redo: bool = False,
    only_prompts: bool = False,
    told: Told = lambda *_: None,
    say: Callable[[str], None] = print,
    begin: Callable[["Layout"], None] = lambda layout: None,
) -> None:
    """Build, or go on building, what a recipe says.

    Args:
        redo: go ahead although rows that cost money would be made again under changed settings.
        only_prompts: stop when the prompts are made and sifted, so that what is to come can be counted.
        told: is told of progress; ``say`` of what the user should know; ``begin`` of the prompts being ready.

    Raises:
        ValueError: the recipe is wrong, the folder is in use or damaged, or something keeps the build from going on;
            what is made is kept.
        OSError: a file cannot be written.
    """
    out = Path(recipe.out)
    with Lock(out).held():
        if (out / "stages").is_dir():
            sweep(out / "stages")
        sieve = None if sifting.passes_all(recipe.sift) else sifting.Sieve(recipe.sift)
        layout = Layout.of(recipe, sieve)
        before = last_keys(layout)
        for line in [] if only_prompts else check_changes(layout, before, redo):
            say(line)
        if recipe.ray.vllm and recipe.engine != "ray":
            say(f"ray.vllm is for engine: ray; {', '.join(recipe.ray.vllm)}: the endpoint is asked instead")

        def ready() -> bool:
            if not only_prompts:
                check_prompts(layout, before, redo)
                write_state(layout)
                begin(layout)
            return not only_prompts

        try:
            asyncio.run(_build(layout, sieve, told, say, ready))
        except _Stop as stop:
            if isinstance(stop.problem, OSError):
                raise stop.problem from None
            raise ValueError(
                f"{stop.stage}: {stop.problem}. What is made is kept; build again to go on"
            ) from stop.problem
        except EndpointError as error:
            raise ValueError(f"prompts: {error}. Build again to go on") from error


async def _build(
    layout: Layout,
    sieve: sifting.Sieve | None,
    told: Told,
    say: Callable[[str], None],
    ready: Callable[[], bool],
) -> None:
    recipe = layout.recipe
    async with Workbench(layout.answers, recipe.budget, recipe.processes) as bench:
        await make_prompts(layout, bench, told)
        if sieve is not None:
            await sift_prompts(layout, sieve, told)
            if sieve.benchmarks is not None and not sieve.benchmarks.certified:
                say(
                    f"NOT certified clean: no files of {', '.join(sieve.benchmarks.missing)}; give their folder as "
                    "sift.benchmarks (decontamination.md tells more)"
                )
        go_on = ready()
        if go_on and recipe.engine == "files":
            await run_files(layout, bench, told)
    if go_on and recipe.engine == "ray":
        from irg.curation.ray.run import run_ray

        run_ray(layout, told)


# ---- what was built before


def write_state(layout: Layout) -> None:
    """Keep the recipe and the stages' folders of this build."""
    import yaml

    plain = json.loads(json.dumps(asdict(layout.recipe)))
    write_text(layout.out / "recipe.yaml", yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))
    write_text(layout.out / "state.json", json.dumps(layout.keys, indent=1) + "\n")


def last_keys(layout: Layout) -> dict[str, str]:
    """The stages' folders of the last build here; empty before the first.

    Raises:
        ValueError: what tells of it is damaged.
    """
    state = layout.out / "state.json"
    try:
        keys: dict[str, str] = json.loads(state.read_text(encoding="utf-8")) if state.exists() else {}
    except ValueError as error:
        raise ValueError(f"{state}: damaged ({error}); delete it (changed settings then go unnoticed once)") from error
    return keys


def check_prompts(layout: Layout, before: dict[str, str], redo: bool) -> None:
    """See to it that rows which were paid for are not dropped unnoticed for others.

    Raises:
        ValueError: the prompts have changed so that rows which cost money are not asked for any more, without ``redo``.
    """
    if redo or before.get("prompts") in (None, layout.keys["prompts"]):
        return
    old = StageFolder(layout.prompts.path.with_name(before["prompts"]), PROMPT_COLUMNS)
    asked = {name for block in layout.blocks() for name in layout.prompts.read(block, ["id"])}
    gone = {name for block in old.blocks() for name in old.read(block, ["id"]) if name not in asked}
    rows, cost = 0, 0.0
    for folder in layout.made.values():
        for block in folder.blocks() if gone else ():
            paid = [row["cost"] for name, row in folder.read(block, ["id", "cost"]).items() if name in gone]
            rows, cost = rows + sum(one > 0 for one in paid), cost + sum(paid)
    if cost:
        raise ValueError(
            f"prompts: they have changed (sources, seed, first_turns or samples), and {rows:,} results that cost "
            f"{cost:.2f} are of prompts that are not asked for any more; give --redo to go on, or build into another "
            "folder"
        )


def check_changes(layout: Layout, before: dict[str, str], redo: bool) -> list[str]:
    """What changed settings mean for what is there.

    Raises:
        ValueError: rows that cost money would be made again, and ``redo`` is not given.
    """
    lines = []
    for name, folder in layout.made.items():
        if before.get(name) in (None, layout.keys[name]) or folder.path.is_dir():
            continue
        old = StageFolder(folder.path.with_name(before[name]), folder.columns)
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


# ---- what it will cost


@dataclass(frozen=True)
class StageState:
    """Where a stage stands. ``waiting`` counts rows that have come this far, or may."""

    name: str
    made: int
    rejected: int
    waiting: int
    cost: float
    seconds: float
    reasons: dict[str, int]
    to_pay: float | None  # estimate; None: it calls no endpoint
    known: bool  # whether the estimate rests on calls made here


def state_of(layout: Layout) -> list[StageState]:
    """The state of all stages, read from disk."""
    counts = {stage.name: _Count() for stage in layout.stages}
    for block in layout.blocks():
        _count_block(layout, block, counts)
    return [_state(stage, counts[stage.name]) for stage in layout.stages]


@dataclass
class _Count:
    made: int = 0
    refused: int = 0
    waiting: int = 0
    cost: float = 0.0
    seconds: float = 0.0
    reasons: dict[str, int] = field(default_factory=dict)

    def add(self, row: Row) -> None:
        self.cost += row["cost"]
        self.seconds += row["seconds"]
        if row["rejected"] is None:
            self.made += 1
        else:
            self.refused += 1
            reason = row["rejected"].split(":")[0]
            self.reasons[reason] = self.reasons.get(reason, 0) + 1


def _count_block(layout: Layout, block: int, counts: dict[str, _Count]) -> None:
    """Add a block's rows to the counts. A row that waits for one stage may come to the later ones."""
    turns = {name: row["turns"] for name, row in layout.prompts.read(block, ["id", "turns"]).items()}
    if layout.sift is not None:
        verdicts = layout.sift.read(block, ["id", "rejected"])
        turns = {n: t for n, t in turns.items() if n not in verdicts or verdicts[n]["rejected"] is None}
    for stage in layout.stages:
        count = counts[stage.name]
        rows = layout.made[stage.name].read(block, ["id", "rejected", "cost", "seconds"])
        for name in [name for name, number in turns.items() if number in stage.turns]:
            if name not in rows:
                count.waiting += 1
                continue
            count.add(rows[name])
            if rows[name]["rejected"] is not None:
                del turns[name]


def _state(stage: Stage, count: _Count) -> StageState:
    calls = stage.calls()
    known = count.made > 0 and count.cost > 0
    guess = sum(number * price_of_a_call(endpoint) for endpoint, number in calls)
    per_row = count.cost / count.made if known else guess
    to_pay = count.waiting * per_row if calls else None
    return StageState(
        stage.name, count.made, count.refused, count.waiting, count.cost, count.seconds, count.reasons, to_pay, known
    )


def price_of_a_call(endpoint: Any) -> float:
    """What a call is taken to cost before any was made."""
    if endpoint.price_per_image:
        return float(endpoint.price_per_image)
    return float(endpoint.cost({"prompt_tokens": TOKENS_IN, "completion_tokens": TOKENS_OUT}))


def spent(layout: Layout) -> float:
    """What this folder's answers have cost."""
    return AnswerCache(layout.answers).spent()
