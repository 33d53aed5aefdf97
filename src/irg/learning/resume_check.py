"""A run's folder belongs to one recipe and one number of packs a step: what may change on resuming, what may not."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from irg import files
from irg.learning.checkpoints import read_about
from irg.learning.parallel import Ranks
from irg.learning.recipe import TrainRecipe
from irg.model.placement.devices import device_name
from irg.model.weights.fingerprint import weights_fingerprint
from irg.text_files import parse_json, read_text
from irg.version import library_versions

FREE = {  # where the run ends, how often it reports, how it is fitted into memory: none of it changes what is learned
    *("out", "cache", "steps", "stop_after", "log_every", "save_every", "keep", "validate_every", "threads", "device"),
    *("trackers", "samples", "guard", "lora.merge", "rollout.workers"),
    *("parallel.replicas", "parallel.recompute", "parallel.attention", "parallel.compile", "parallel.accumulate"),
}


RECIPE = "recipe.json"
SESSIONS = "sessions.jsonl"


def flat(recipe: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields by dotted name."""
    out: dict[str, Any] = {}
    for name, value in recipe.items():
        inner = isinstance(value, dict) and prefix + name not in FREE and name != "conversations"
        out |= flat(value, f"{prefix}{name}.") if inner else {prefix + name: value}
    return out


def differences(recipe: TrainRecipe, out: Path) -> list[str]:
    """Fields in which a recipe differs, in what is learned, from the one that the run in a folder was made with.

    Raises:
        ValueError: the folder's file of it is damaged.
    """
    path = out / RECIPE
    if not path.is_file():
        return []
    mine = flat(json.loads(json.dumps(asdict(recipe))))
    try:
        theirs = flat(parse_json(read_text(path)))
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it to go on with this recipe") from None
    return [k for k in mine if k not in FREE and k in theirs and mine[k] != theirs[k]]


def message(out: Path, changed: Sequence[str]) -> str:
    """The message for a user about differences."""
    return (
        f"{out} holds a run with another recipe (different: {', '.join(changed)}); "
        "choose another --out, give the old values, or go on with --force"
    )


def check_recipe(recipe: TrainRecipe, out: Path, ranks: Ranks, force: bool) -> None:
    """Compare with the recipe that the folder's run was made with, and keep this one there.

    Raises:
        ValueError: they differ in what is learned, and ``force`` is not set.
    """
    changed, problem = list[str](), None
    if ranks.main:
        try:
            changed = differences(recipe, out)
            problem = message(out, changed) if changed and not force else None
        except ValueError as error:
            problem = str(error)
    if found := next((p for p in ranks.gather(problem) if p), None):
        raise ValueError(found)
    if ranks.main:
        if changed:
            print(f"going on in {out} with another recipe (different: {', '.join(changed)})", file=sys.stderr)
        files.write_json(out / RECIPE, asdict(recipe))


def check_start(start: Path, out: Path, ranks: Ranks, force: bool) -> None:
    """Compare the weights that a run starts from with those of its earlier sessions (what is frozen is read again, and
    adapters are merged into them), and add this session to ``sessions.jsonl``.

    Raises:
        ValueError: they are others, and ``force`` is not set.
    """
    problem = None
    if ranks.main:
        fingerprint = weights_fingerprint(start)
        try:
            before = [session.get("fingerprint") for session in files.read_json_lines(out / SESSIONS)]
            if before and before[-1] != fingerprint and not force:
                problem = (
                    f"the weights in {start} are not those that the run in {out} started from: bring them back, "
                    "choose another --out, or go on with --force"
                )
        except ValueError as error:
            problem = str(error)
    if found := ranks.gather(problem)[0]:
        raise ValueError(found)
    if ranks.main:
        device = device_name(ranks.device)
        line = {"fingerprint": fingerprint, "device": device, "world": ranks.world, "versions": library_versions()}
        with files.JsonLines(out / SESSIONS) as sessions:
            sessions.append(line)


def check_streams(path: Path, streams: int, world: int, force: bool, quiet: bool) -> None:
    """Compare the number of packs a step with a checkpoint's.

    Raises:
        ValueError: it is damaged, or made with another number and ``force`` is not set.
    """
    about = read_about(path)
    if about["streams"] != streams and not force:
        raise ValueError(
            f"{path} was made with {about['streams']} packs a step ({about['world']} processes), now there are "
            f"{streams} ({world} processes): set parallel.accumulate so that processes x accumulate is "
            f"{about['streams']} again, or go on with another batch size with --force"
        )
    if about["world"] != world and not quiet:
        print(f"resuming on {world} processes what ran on {about['world']}", file=sys.stderr)


def same_rows(about: Mapping[str, Any], fingerprint: str, path: Path, force: bool, quiet: bool) -> bool:
    """Whether the rows are those that a checkpoint's positions point into.

    Raises:
        ValueError: they are others, and ``force`` is not set.
    """
    if about["rows"] in (fingerprint, fingerprint.partition("-")[0]):  # earlier versions knew no content
        return True
    if not force:
        raise ValueError(
            f"the training rows are not those of {path}: files were added, removed or written anew; bring them back, "
            "choose another --out, or begin a new round of the rows there are now with --force"
        )
    if not quiet:
        print("the training rows changed: a new round of them begins", file=sys.stderr)
    return False
