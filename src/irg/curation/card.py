"""What goes with an exported set: counts, the hub's dataset card and a datasheet."""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from irg.curation.recipe import DataRecipe
from irg.curation.records import TrajectoryRecord
from irg.version import __version__

_SIZES = ((1000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


@dataclass
class Summary:
    """What was exported."""

    kept: Counter[str] = field(default_factory=Counter)  # per split
    dropped: Counter[str] = field(default_factory=Counter)  # per reason
    turns: Counter[str] = field(default_factory=Counter)
    sources: Counter[tuple[str, str]] = field(default_factory=Counter)  # (source, licence)
    models: Counter[tuple[str, str]] = field(default_factory=Counter)  # (stage, model)
    cost: float = 0.0
    shards: dict[str, int] = field(default_factory=dict)
    bytes: int = 0

    def add(self, record: TrajectoryRecord, split: str) -> None:
        self.kept[split] += 1
        self.turns["one turn" if record.improved is None else "two turns"] += 1
        self.sources[(record.source, record.license)] += 1
        self.cost += record.cost
        for stage, how in json.loads(record.provenance or "{}").items():
            if "model" in how:
                self.models[(stage, how["model"])] += 1


def dataset_card(recipe: DataRecipe, summary: Summary, clean: dict[str, Any] | None) -> str:
    """README.md with the hub's header, which says where train and val lie."""
    import yaml

    rows = sum(summary.kept.values())
    files = [
        {"split": "validation" if s == "val" else s, "path": f"{s}/*.parquet"} for s, n in summary.shards.items() if n
    ]
    head = {
        "pretty_name": recipe.export.title,
        "license": recipe.export.license,
        "task_categories": ["text-to-image", "image-to-image"],
        "tags": ["irg", "interleaved-reasoning"],
        "size_categories": [next((name for most, name in _SIZES if rows < most), "n>1M")],
        "configs": [{"config_name": "default", "data_files": files}],
    }
    return (
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n# {recipe.export.title}\n\n"
        f"{rows:,} trajectories: prompt, thinking (T1), image (I1) and, in rows of two turns, what is wrong with\n"
        "the image (T2) and a better one (I2). Built with `irg data`; [datasheet.md](datasheet.md) says how.\n\n"
        f"{_contents(summary)}\n{_licenses(recipe, summary)}\n{_clean(clean)}"
    )


def datasheet(recipe: DataRecipe, summary: Summary, clean: dict[str, Any] | None) -> str:
    """How the set was made, from what, what was left out, and what to know before using it."""
    models = [[stage, model, f"{count:,}"] for (stage, model), count in sorted(summary.models.items())]
    dropped = [[reason, f"{count:,}"] for reason, count in summary.dropped.most_common()]
    strategy = {
        "refine": "The model's own draft was reflected on, and the better image made from that reflection.",
        "independent": "The better image was made from the prompt alone, and the reflection from both images.",
    }[recipe.strategy]
    return (
        f"# Datasheet: {recipe.export.title}\n\n"
        f"Built with irg {__version__}. {strategy}\n"
        "All words but the prompts, and all images, are made by programs and models. "
        "Nobody has looked at every row.\n\n"
        f"## Contents\n\n{_contents(summary)}\n"
        f"## Who made what\n\n{_table(('stage', 'model', 'rows'), models)}\n"
        f"Cost of the exported rows: {summary.cost:.4f} (in the currency of the recipe's prices).\n\n"
        f"## Left out at export\n\n{_table(('reason', 'rows'), dropped) if dropped else 'Nothing.'}\n\n"
        f"## Licences\n\n{_licenses(recipe, summary)}\n"
        f"## Benchmarks\n\n{_clean(clean)}"
    )


def _table(head: tuple[str, ...], rows: list[list[str]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _contents(summary: Summary) -> str:
    rows = [[split, f"{count:,}", str(summary.shards[split])] for split, count in sorted(summary.kept.items())]
    turns = ", ".join(f"{count:,} of {what}" for what, count in sorted(summary.turns.items()))
    return f"{_table(('split', 'rows', 'files'), rows)}\nRows: {turns}; {summary.bytes / 1e6:,.1f} MB.\n"


def _licenses(recipe: DataRecipe, summary: Summary) -> str:
    """Licences of prompts summed up: sources that share one are listed together."""
    totals: Counter[str] = Counter()
    origins: dict[str, list[str]] = {}
    for (source, license_), count in sorted(summary.sources.items()):
        totals[license_] += count
        origins.setdefault(license_, []).append(source)
    rows = []
    for license_, count in totals.most_common():
        names = origins[license_]
        shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
        rows.append([license_, f"{count:,}", shown])
    text = _table(("licence of the prompt", "rows", "sources"), rows)
    if totals["unknown"]:
        text += f"\n**{totals['unknown']:,} rows have prompts of unknown licence.**\n"
    return (
        f"{text}\nThe set as a whole: {recipe.export.license}. Images and texts come from the models that the "
        "datasheet names; their terms may bind you too.\n"
    )


def _clean(clean: dict[str, Any] | None) -> str:
    if clean is None or not clean["certified"]:
        missing = ", ".join(clean["not_compared_with"]) if clean else "any benchmark"
        return f"**Not certified clean of benchmarks**: the prompts were not compared with {missing}.\n"
    taken = sum(sum(counts.values()) for counts in clean["taken_out"].values())
    names = ", ".join(clean["compared_with"])
    return (
        f"{clean['prompts']:,} prompts were compared with those of {names}: same words, same template, or an overlap "
        f"(MinHash) of {clean['overlap']:g} and more. {taken:,} were taken out before anything was drawn.\n"
    )
