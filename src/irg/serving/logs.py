"""The log: one JSON object a line, to standard error. Prompts, keys and images never stand in it unless asked for."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

LOG = logging.getLogger("irg.serve")


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON; ``fields`` given with it are its own."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": when, "level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class _ToStderr(logging.StreamHandler):
    """Writes to what is standard error at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def install() -> None:
    """Let our log and uvicorn's go to standard error in this form."""
    handler = _ToStderr()
    handler.setFormatter(JsonFormatter())
    for name in ("irg.serve", "uvicorn.error"):
        log = logging.getLogger(name)
        log.handlers, log.propagate = [handler], False
        log.setLevel(logging.INFO if name == "irg.serve" else logging.WARNING)


def event(name: str, **fields: Any) -> None:
    """A line about something that happened."""
    LOG.info(name, extra={"fields": fields})
