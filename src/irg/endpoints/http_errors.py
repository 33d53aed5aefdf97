"""What an HTTP error of a server means: try again, refuse this request, or give the endpoint up."""

import re
import time
from typing import Any

from irg.endpoints.answers import RETRY_STATUSES, moderates
from irg.endpoints.endpoint import EndpointError, Retry, Scope

_UNKNOWN_FIELD = re.compile(
    r"unsupported|not supported|unrecognized|unknown|unexpected|not permitted|not allowed|extra inputs|not support",
    re.IGNORECASE,
)
_NEEDED = ("model", "messages", "prompt")  # fields that a request is nothing without


def http_error(error: Any, url: str, body: dict[str, Any]) -> Exception:
    """What an HTTP error means for a caller.

    Args:
        error: the openai package's ``APIStatusError``.
        body: of the request.
    """
    status = int(error.status_code)
    reason = " ".join(str(error.message).split())[:300]
    code = str(getattr(error, "code", None) or "")
    spent = code == "insufficient_quota"  # a 429 that no waiting mends
    if status in RETRY_STATUSES and not spent:
        return Retry(f"HTTP {status}: {reason}", status, _retry_after(error.response.headers))
    told = f"{url} refuses: HTTP {status}: {reason}"
    scope: Scope | None = None
    if status in (400, 403, 422) and moderates(f"{code} {reason}"):
        scope = "request"
    elif (field := refused_field(body, reason, getattr(error, "param", None))) and status in (400, 422):
        scope, told = "endpoint", f'{told}; to leave the field out, set extra to {{"{field}": null}}'
    return EndpointError("refused", told, status, scope)


def refused_field(body: dict[str, Any], reason: str, param: Any = None) -> str | None:
    """The field of a request that a server says it does not take; None if the error is about something else."""
    if not _UNKNOWN_FIELD.search(reason):
        return None
    names = [name for name in body if name not in _NEEDED]
    if param in names:
        return str(param)
    return next((name for name in names if re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)", reason)), None)


def _retry_after(headers: Any) -> float | None:
    """Seconds of a Retry-After header: a number, or a date."""
    from email.utils import parsedate_to_datetime

    text = headers.get("retry-after")
    if text is None:
        return None
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None
