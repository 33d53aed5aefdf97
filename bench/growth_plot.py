"""Plots of how cost grows, by ``growth.py`` (measured) or ``roofline.py`` (counted); needs matplotlib.

``python bench/growth_plot.py roofline.json --title "..." --out growth.svg``: seconds above, memory below, a column for
each setting that changes, all axes logarithmic. Of measured seconds a dotted line shows what they would be if they grew
as the operations do; of counted ones, thin lines show the stages.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

LABELS = {
    "requests": "requests at once",
    "size": "pixels a side",
    "rounds": "rounds",
    "thinking_tokens": "tokens a text",
}
STAGES = {"denoise": "tab:blue", "decode": "tab:orange", "prefill": "tab:green", "vae": "tab:red"}


@dataclass
class Options:
    """Draw the numbers of one file."""

    numbers: tyro.conf.Positional[Path]
    """What growth.py or roofline.py wrote by --json."""
    title: str = ""
    out: Path = Path("growth.svg")
    """Its ending is the format: svg, png."""


def plot_seconds(axes: Any, points: list[dict[str, Any]]) -> None:
    """Of one setting: the total, and the stages or the operations beside it."""
    values, seconds = [point["value"] for point in points], [point["seconds"] for point in points]
    axes.plot(values, seconds, "o-", color="black", label="total")
    if "stages" in points[0]:
        for stage, color in STAGES.items():
            axes.plot(
                values,
                [p["stages"][stage] for p in points],
                ".-",
                color=color,
                linewidth=0.8,
                label=stage.replace("vae", "autoencoder"),
            )
        axes.set_ylim(bottom=0.01)
    else:
        scale = seconds[0] / points[0]["tflop"]
        axes.plot(values, [scale * p["tflop"] for p in points], ":", color="gray", label="as the operations")


def plot_memory(axes: Any, points: list[dict[str, Any]]) -> None:
    """Of one setting: the keys and values kept, and all that is planned where that is known."""
    values, unit = [point["value"] for point in points], 1e9 if "cache" in points[0] else 1e6
    if "cache" in points[0]:
        axes.plot(values, [point["bytes"] / unit for point in points], "o-", color="black", label="all")
    cache = [point.get("cache", point["bytes"]) / unit for point in points]
    axes.plot(values, cache, "s-", color="tab:purple", label="keys and values")


def main(options: Options) -> int:
    """Write the figure."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        print("plots need matplotlib: pip install matplotlib", file=sys.stderr)
        return 2
    plt.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "growth", "font.size": 8}
    points = json.loads(options.numbers.read_text())["points"]
    names = list(dict.fromkeys(point["what"] for point in points))
    figure, grid = plt.subplots(2, len(names), figsize=(2.7 * len(names) + 1, 4.6), sharey="row", layout="constrained")
    for column, name in enumerate(names):
        row = [point for point in points if point["what"] == name]
        plot_seconds(grid[0][column], row)
        plot_memory(grid[1][column], row)
        values = [point["value"] for point in row]
        ticks = values if len(values) < 5 else values[::2]
        for axes in (grid[0][column], grid[1][column]):
            axes.set(xscale="log", yscale="log")
            axes.set_xticks(ticks, [f"{value:,}" for value in ticks])
            axes.minorticks_off()
            axes.grid(alpha=0.3)
        grid[1][column].set_xlabel(LABELS[name])
    grid[0][0].set_ylabel("seconds")
    grid[1][0].set_ylabel("GB" if "cache" in points[0] else "MB")
    for row, where in zip(grid, ("upper", "lower"), strict=True):
        figure.legend(*row[0].get_legend_handles_labels(), loc=f"outside right {where}", fontsize=7)
    figure.suptitle(options.title)
    figure.savefig(options.out, metadata={"Date": None} if options.out.suffix == ".svg" else None)
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
