"""Answers on disk, one file each, named by the content of the request.

    <folder>/3f/3fa2...e1.json     {"request": {...}, "response": <as it came>, "cost": 0.0123, ...}
    <folder>/spent.jsonl           one line for each answer paid for

Files appear by renaming, so each is whole or not there; many processes may share a folder.
"""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from irg import files
from irg.text_files import parse_json

log = logging.getLogger(__name__)


class AnswerCache:
    """A folder of answers."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    def _file(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"

    def get(self, key: str) -> dict[str, Any] | None:
        """What was put under ``key``; None if nothing was. A damaged file is set aside and counts as nothing."""
        file = self._file(key)
        try:
            entry: dict[str, Any] = parse_json(file.read_bytes())
            if not isinstance(entry, dict) or "response" not in entry:
                raise ValueError("it lacks a response")
            if entry.get("sha256", own := _digest(entry["response"])) != own:  # earlier versions kept none
                raise ValueError("its bytes have changed")
            return entry
        except FileNotFoundError:
            return None
        except ValueError as error:
            log.warning("%s: damaged answer (%s); set aside, the call is made again", file, error)
            file.replace(file.with_suffix(".damaged"))
            return None

    def put(self, key: str, entry: dict[str, Any]) -> None:
        """Keep an answer; when this returns it outlives the process and the machine's power."""
        kept = entry | {"sha256": _digest(entry["response"])}
        files.write_bytes(self._file(key), json.dumps(kept).encode())
        if entry.get("cost"):
            # After the answer, which is worth more than its line. Many processes append to this file, so it is not for
            # files.JsonLines, which cuts off the last line when it opens.
            with (self.folder / "spent.jsonl").open("ab") as out:
                out.write(json.dumps({"key": key, "cost": entry["cost"]}).encode() + b"\n")

    def spent(self) -> float:
        """What all answers here have cost. A kill between an answer and its line can leave the line out."""
        file = self.folder / "spent.jsonl"
        if not file.is_file():
            return 0.0
        total = 0.0
        with file.open("rb") as lines:
            for line in lines:
                try:
                    total += float(json.loads(line)["cost"])
                except (ValueError, KeyError, TypeError):
                    log.warning("%s: a damaged line is left out of the sum", file)
        return total


def _digest(response: Any) -> str:
    return hashlib.sha256(json.dumps(response, sort_keys=True).encode()).hexdigest()
