"""What is made of finished results: a file to download, settings to copy, words on what the reflection changed."""

import secrets
import shlex
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from irg.reasoning.critique import verdicts
from irg.results.reflection import sections
from irg.results.trajectory import Trajectory

KEPT = 20
"""Zip files that are kept for downloads; the oldest go first."""


def zipped(trajectories: Sequence[Trajectory], folder: Path) -> Path:
    """A zip file in ``folder`` of each result's own folder: images, trajectory.json, report.html."""
    path = folder / f"irg-{trajectories[0].seed}-{secrets.token_hex(4)}.zip"
    with tempfile.TemporaryDirectory(dir=folder) as work, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for number, trajectory in enumerate(trajectories, start=1):
            made = trajectory.save(Path(work) / f"{number}-seed-{trajectory.seed}")
            for file in sorted(made.iterdir()):
                archive.write(file, f"{made.name}/{file.name}")
    for old in sorted(folder.glob("*.zip"), key=lambda one: one.stat().st_mtime)[:-KEPT]:
        old.unlink(missing_ok=True)
    return path


def command(prompt: str, model: str, seed: int, changes: dict[str, object]) -> str:
    """The command line that draws the same image: of an image from a prompt."""
    words = ["irg", "generate", prompt, "--model", model, "--seed", str(seed)]
    for name, value in changes.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(words)


def changes_of(trajectory: Trajectory) -> str:
    """What the model can't do with the prompt, what the last reflection saw and changed, and what critics said, in
    Markdown; empty where there is none of that."""
    written = [turn for turn in trajectory.turns[1:] if turn.texts]
    found = sections(written[-1].texts[0]) if written else {}
    shown = [("Looked", "analysis"), ("Changed", "improvements")]
    if written and written[-1].reflection is not None:
        shown.pop()  # the image follows a new thinking, not what the reflection wants to change
    said = [f"**{title}:** {found[name]}" for title, name in shown if found.get(name)]
    return "\n\n".join([*trajectory.notes, *said, *verdicts(trajectory)])
