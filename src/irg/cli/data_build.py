"""``irg data build`` and what goes with it: status, stats, sample, validate, export, push."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from irg.cli.arguments import parse

if TYPE_CHECKING:
    from irg.curation.build_folder import BuildFolder
    from irg.curation.recipe import DataRecipe

_BUILD = """usage: irg data build RECIPE.yaml [--estimate] [--redo] [--field value ...]

Build, or go on building, the trajectories of a recipe (docs/data.md). Fields of the recipe can be set from
the command line; nested ones are named with dots:

  irg data build recipes/data/mini.yaml --out build/data --processes 2 --engine ray

  --estimate   make and filter the prompts (unless that costs money), then show what is left and what it would cost
  --redo       go ahead although changed settings mean that rows which cost money are made again"""

_EXPORT = """usage: irg data export RECIPE.yaml|FOLDER [--field value ...]

Write the finished rows that pass the thresholds as shards, with a dataset card and a datasheet:

  irg data export build/irgl --export.keep.following 7 --export.conversation '[improving_full]'"""


def build(argv: Sequence[str]) -> int:
    """``irg data build``."""
    words, flags = _flags(argv, "--estimate", "--redo")
    if not words or words[0] in ("-h", "--help"):
        print(_BUILD)
        return 0 if words else 2
    recipe = _recipe(words[0], words[1:])
    if "--estimate" in flags:
        from irg.curation.build import build as prepare
        from irg.curation.build_folder import BuildFolder

        if not any(source.endpoints() for source in recipe.prompts.sources):
            prepare(recipe, only_prompts=True)  # costs nothing, and only then the rows can be counted
        _show(BuildFolder.of(recipe), estimate=True)
        return 0
    finished = _run(recipe, "--redo" in flags)
    return 0 if finished else 1


LINE_EVERY_S = 60.0


class _Lines:
    """Progress where there is no terminal (a log file, a batch system): a line now and then."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self.log, self.begun, self.last = log, time.monotonic(), time.monotonic()
        self.done: dict[str, int] = {}
        self.before = 0  # rows that were there when this build began

    def update(self, stage: str, made: int, totals: dict[str, int], note: str) -> None:
        self.done[stage] = self.done.get(stage, 0) + made
        now = time.monotonic()
        if now - self.last < LINE_EVERY_S:
            return
        self.last = now
        counts = [f"{name} {self.done.get(name, 0):,}/{total:,}" for name, total in totals.items()]
        made_now = sum(self.done.get(name, 0) for name in totals) - self.before
        left = sum(totals.values()) - self.before - made_now
        eta = f"; about {(now - self.begun) / made_now * left / 60:.0f} min left" if made_now > 0 else ""
        self.log(", ".join(counts or [f"{stage} {self.done[stage]:,}"]) + (f"; {note.strip()}" if note else "") + eta)


def _run(recipe: "DataRecipe", redo: bool) -> int:
    """Build, show what was made; returns the number of finished rows."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from irg.curation.build import build as run
    from irg.curation.build_folder import BuildFolder
    from irg.curation.progress import progress_of, spent

    console = Console(stderr=True, highlight=False)
    columns = (
        TextColumn("{task.description:>14}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as display:
        bars: dict[str, Any] = {}
        rejections: dict[str, int] = {}
        paid: dict[str, float] = {}
        lines = _Lines(lambda line: console.print(line, soft_wrap=True))

        def progress(stage: str, made: int, rejected: int, cost: float) -> None:
            if stage not in bars:
                bars[stage] = display.add_task(stage, total=totals.get(stage), note="")
            rejections[stage] = rejections.get(stage, 0) + rejected
            paid[stage] = paid.get(stage, 0.0) + cost
            note = (f"{rejections[stage]:,} rejected " if rejections[stage] else "") + (
                f"cost {paid[stage]:.2f}" if paid[stage] else ""
            )
            display.update(bars[stage], advance=made, note=note)
            if not console.is_terminal:
                cost = sum(paid.values())
                lines.update(stage, made, totals, f"cost {cost:.2f}" if cost else "")

        totals: dict[str, int] = {}

        def on_start(folder: BuildFolder) -> None:
            states = progress_of(folder)
            for state in states:
                totals[state.name] = state.accepted + state.rejected + state.pending
                bars[state.name] = display.add_task(
                    state.name, total=totals[state.name], completed=state.accepted + state.rejected, note=""
                )
                rejections[state.name], paid[state.name] = state.rejected, state.cost
            lines.done = {state.name: state.accepted + state.rejected for state in states}
            lines.before, lines.begun = sum(lines.done.values()), time.monotonic()
            _show_cost(console, recipe, spent(folder), states)

        def log(line: str) -> None:
            console.print(line, soft_wrap=True)

        run(recipe, redo=redo, progress=progress, log=log, on_start=on_start)
    return _show(BuildFolder.of(recipe))


def _show_cost(console: Any, recipe: "DataRecipe", spent: float, states: Sequence[Any]) -> None:
    """What is still to be paid, before it is."""
    to_pay = sum(state.to_pay or 0.0 for state in states)
    if not to_pay and not spent:
        return
    cap = "no budget is set" if recipe.budget is None else f"the budget is {recipe.budget:g}"
    text = f"cost so far {spent:.2f}; what is left will cost about {to_pay:.2f}; {cap}"
    console.print(_beyond_budget(recipe, spent, states) or text, soft_wrap=True)


def _beyond_budget(recipe: "DataRecipe", spent: float, states: Sequence[Any]) -> str:
    """A line where the estimate exceeds the budget; else empty."""
    to_pay = sum(state.to_pay or 0.0 for state in states)
    if recipe.budget is None or spent + to_pay <= recipe.budget:
        return ""
    return (
        f"cost so far {spent:.2f}; what is left will cost about {to_pay:.2f}; the budget is {recipe.budget:g}: the "
        "build will stop there"
    )


def status(argv: Sequence[str]) -> int:
    """``irg data status``."""
    _show(_folder(argv, "status"), estimate=True)
    return 0


def stats(argv: Sequence[str]) -> int:
    """``irg data stats``."""
    from rich.console import Console

    from irg.curation.statistics import tables

    console = Console(highlight=False, width=None)
    for table in tables(_folder(argv, "stats")):
        console.print(table)
    return 0


def _show(folder: "BuildFolder", estimate: bool = False) -> int:
    """Print how far a build is; returns the number of finished rows."""
    from rich.console import Console
    from rich.table import Table

    from irg.cli.display import safe
    from irg.curation.progress import progress_of, spent

    table = Table(title=str(folder.out), title_justify="left")
    heads = ("stage", "made", "rejected", "pending", "cost", "work s", *(("still to pay",) if estimate else ()))
    for head in heads:
        table.add_column(head, justify="left" if head == "stage" else "right")
    states = progress_of(folder)
    for state in states:
        cells = [state.name, f"{state.accepted:,}", f"{state.rejected:,}", f"{state.pending:,}", f"{state.cost:.4f}"]
        cells.append(f"{state.seconds:,.1f}")
        if estimate:
            cells.append("" if state.to_pay is None else f"{'' if state.measured else '~'}{state.to_pay:.2f}")
        table.add_row(*cells)
    console = Console(highlight=False)
    console.print(table)
    for state in states:
        for reason, count in sorted(state.reasons.items()):
            words = safe(state.examples[reason])[:300]
            line = f"{state.name}: {count:,} rejected: {reason}" + (f", such as: {words}" if words else "")
            console.print(line, markup=False, soft_wrap=True)
    finished = sum(len(folder.accepted(block)) for block in folder.blocks())
    cost = spent(folder)
    if estimate and (told := _beyond_budget(folder.recipe, cost, states)):
        console.print(told, soft_wrap=True)
    console.print(f"{finished:,} rows finished" + (f"; all answers so far cost {cost:.4f}" if cost else ""))
    return finished


@dataclass(frozen=True)
class _Sample:
    rows: int = 24
    seed: int = 0
    out: str | None = None
    """The page (default: sample.html in the folder)."""


def sample(argv: Sequence[str]) -> int:
    """``irg data sample``."""
    from irg.curation import view

    where, rest = _first(argv, "sample", "RECIPE.yaml|FOLDER [--rows N] [--seed N] [--out FILE]")
    options = parse(_Sample, rest, "irg data sample", "Random rows with all their parts and scores as an HTML page.")
    folder = Path(where)
    if folder.is_dir() and not (folder / "recipe.yaml").exists():
        page = Path(options.out or folder / "sample.html")
        count = view.sample_of_shards(folder, options.rows, options.seed, page)
    else:
        build_folder = _folder([where], "sample")
        page = Path(options.out or build_folder.out / "sample.html")
        count = view.sample(build_folder, options.rows, options.seed, page)
    print(f"{count} rows in {page}")
    return 0


def validate(argv: Sequence[str]) -> int:
    """``irg data validate``."""
    from irg.curation.check import MOST_TOLD
    from irg.curation.check import validate as check

    where, rest = _first(argv, "validate", "FOLDER")
    if rest:
        raise ValueError(f"validate takes one folder, got {rest[0]!r} too")
    found = check(Path(where))
    turns = ", ".join(f"{count:,} of {n} turn{'s' * (n > 1)}" for n, count in sorted(found.turns.items()))
    sizes = ", ".join(f"{w}x{h}: {n:,}" for (w, h), n in found.sizes.most_common(4))
    print(f"{found.rows:,} rows in {found.files} files ({turns}); images {sizes}")
    for problem in found.problems[:MOST_TOLD]:
        print(problem)
    if found.problems:
        raise ValueError(f"{where}: {len(found.problems):,} problems (the first {MOST_TOLD} stand above)")
    print("all of them can be trained on")
    return 0


def export(argv: Sequence[str]) -> int:
    """``irg data export``."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_EXPORT)
        return 0 if argv else 2
    from irg.curation.export import export as write

    out, summary = write(_folder(argv, "export", overrides=True))
    for reason, count in summary.dropped.most_common():
        print(f"left out: {count:,}: {reason}")
    text = ", ".join(
        f"{count:,} {split} rows in {summary.shards[split]} files" for split, count in summary.kept.items()
    )
    print(f"{text} ({summary.bytes / 1e6:.1f} MB) in {out}")
    return 0


def push(argv: Sequence[str]) -> int:
    """``irg data push``."""
    from irg.curation.export import push as upload

    words, flags = _flags(argv, "--public")
    if len(words) != 2:
        raise ValueError("usage: irg data push EXPORT-FOLDER OWNER/NAME [--public] (the token is $HF_TOKEN)")
    print(upload(Path(words[0]), words[1], private="--public" not in flags))
    return 0


# ---- reading the command line


def _first(argv: Sequence[str], command: str, usage: str) -> tuple[str, list[str]]:
    if not argv or argv[0].startswith("-"):
        if argv and argv[0] in ("-h", "--help"):
            print(f"usage: irg data {command} {usage}")
            raise SystemExit(0)
        raise ValueError(f"usage: irg data {command} {usage}")
    return argv[0], list(argv[1:])


def _flags(argv: Sequence[str], *flags: str) -> tuple[list[str], set[str]]:
    return [word for word in argv if word not in flags], {word for word in argv if word in flags}


def _recipe(path: str, overrides: Sequence[str]) -> "DataRecipe":
    if path.startswith("-"):
        raise ValueError(f"the recipe's file comes first, got {path!r}")
    from irg import recipes
    from irg.curation.recipe import DataRecipe

    return recipes.load(DataRecipe, path, overrides)


def _folder(argv: Sequence[str], command: str, overrides: bool = False) -> "BuildFolder":
    """The folder of a recipe, or the build in a folder."""
    where, rest = _first(argv, command, f"RECIPE.yaml|FOLDER{' [--field value ...]' if overrides else ''}")
    if rest and not overrides:
        raise ValueError(f"{command} takes one recipe or folder, got {rest[0]!r} too")
    from dataclasses import replace

    from irg.curation.build_folder import BuildFolder

    path = Path(where)
    if path.is_dir():
        if not (path / "recipe.yaml").exists():
            raise ValueError(f"{path}: no build here (no recipe.yaml)")
        return BuildFolder.of(
            replace(_recipe(str(path / "recipe.yaml"), rest), out=str(path))
        )  # it may have been moved
    if not path.exists():
        raise ValueError(f"{path}: neither a build's folder nor a recipe's file is there")
    return BuildFolder.of(_recipe(where, rest))
