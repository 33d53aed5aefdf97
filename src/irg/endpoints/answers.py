"""Reading what a server answered: its text, whether it is whole, and errors that come as HTTP 200."""

import re
from typing import Any

from irg.endpoints.endpoint import EndpointError, Retry

RETRY_STATUSES = (408, 409, 425, 429, 500, 502, 503, 504, 529)
"""HTTP states that another try may mend."""
CUT_OFF = "it was cut off at its limit of tokens (max_tokens); be brief"
_REFUSED_CODES = re.compile(r"insufficient_quota|invalid|not_found|unauthorized|permission|billing|policy|unsupported")
_MODERATION = re.compile(r"moderat|content[_ ]?(?:policy|filter|management)|safety|flagged|sensitive", re.IGNORECASE)
_REFUSAL = re.compile(
    r"(?:(?:i[’']m|i am|we[’']re)?\s*(?:very |so )?sorry|(?:i|my) apolog(?:ize|ise|ies))\b[^.\n]{0,40}?"
    r"\b(?:can[’']?t|can ?not|unable|not able|won[’']t)\b"
    r"|i(?:[’']m| am)? (?:can[’']?t|can ?not|unable to|not able to|won[’']t) "
    r"(?:help|assist|comply|fulfil|provide|continue|create|process|discuss|do|engage|view|see|analy[sz]e)",
    re.IGNORECASE,
)


def text_of(raw: dict[str, Any], answer_in_think: bool = False, whole: bool = True) -> str:
    """The text of a chat's answer, without the monologue that a reasoning model puts before it in ``<think>`` tags.

    Args:
        answer_in_think: the form asked for stands in such tags itself; they are a monologue only where more follows.
        whole: an answer that was cut off at its limit of tokens is none.

    Raises:
        ValueError: there is no text, or it is not whole; asking again may help.
        EndpointError: of kind ``refused``: the model or its filter refuses.
    """
    try:
        choice = raw["choices"][0]
        message = choice["message"]
        content = message.get("content")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise ValueError("the answer has no choices[0].message.content") from None
    reason = choice.get("finish_reason")
    if message.get("refusal"):
        raise EndpointError("refused", f"the model refuses: {_short(message['refusal'])}")
    if reason == "content_filter":
        raise EndpointError("refused", "a content filter stopped the answer")
    if whole and reason in ("length", "max_tokens"):
        raise ValueError(CUT_OFF)
    text = _joined(content)
    if not text.strip():
        raise ValueError("the answer is empty")
    return without_monologue(text, answer_in_think)


def quoted(raw: dict[str, Any]) -> str:
    """What of an unusable answer goes back to the model with the complaint; empty if there is nothing to show."""
    try:
        return _joined(raw["choices"][0]["message"].get("content")).strip()[:2000]
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        return ""


def _joined(content: Any) -> str:
    """A content that is a text or a list of parts; parts that are no text, such as thinking, are left out."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ValueError("the answer is empty" if content is None else "the answer's content is no text")
    texts = [one if isinstance(one, str) else one.get("text") for one in content if _is_text(one)]
    return "".join(text for text in texts if isinstance(text, str))


def _is_text(part: Any) -> bool:
    return isinstance(part, str) or (isinstance(part, dict) and part.get("type", "text") in ("text", "output_text"))


def without_monologue(text: str, answer_in_think: bool = False) -> str:
    """What follows a reasoning model's ``<think>`` monologue; ``answer_in_think`` as of :func:`text_of`.

    Raises:
        ValueError: nothing follows.
    """
    # Chat templates that open the tag themselves leave only the closing one in the answer.
    before, closed, after = text.partition("</think>")
    if closed and after.strip():
        return after.strip()
    if answer_in_think or not (closed or before.lstrip().startswith("<think>")):
        return text
    raise ValueError("it ends inside its thinking, or right after it: the answer itself is missing")


def refuses(text: str) -> bool:
    """Whether a text is a model's refusal ("I'm sorry, but I can't help with that") and nothing else."""
    return len(text) < 600 and _REFUSAL.match(text.strip()) is not None


def moderates(reason: str) -> bool:
    """Whether a server's words mean that it objects to what one request says."""
    return _MODERATION.search(reason) is not None


def check_error(data: dict[str, Any], url: str) -> None:
    """Gateways such as OpenRouter answer with HTTP 200 and an error in place of choices: nothing was answered.

    Raises:
        Retry: another try may help.
        EndpointError: of kind ``refused``.
    """
    choices = data.get("choices")
    first = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    error = first.get("error") or data.get("error") or first.get("finish_reason") == "error"
    if not error:
        return
    error = error if isinstance(error, dict) else {"message": error if isinstance(error, str) else "no reason given"}
    code = str(error.get("code") or error.get("type") or "")
    status = int(code) if re.fullmatch(r"[45]\d\d", code) else None
    reason = f"HTTP 200 with an error{f' {code}' if code else ''}: {_short(error.get('message'))}"
    if moderates(reason) and status in (None, 400, 403, 422):
        raise EndpointError("refused", f"{url} refuses: {reason}", status, "request")
    if (status is not None and status not in RETRY_STATUSES) or _REFUSED_CODES.search(code.lower()):
        raise EndpointError("refused", f"{url} refuses: {reason}", status)
    raise Retry(reason, status)


def is_error(response: Any) -> bool:
    """Whether a kept response is such an error; earlier versions kept them as answers."""
    try:
        check_error(response, "")
    except (Retry, EndpointError):
        return True
    return False


def counts(usage: Any) -> dict[str, int]:
    """The whole numbers of a usage object."""
    return {k: v for k, v in usage.items() if type(v) is int} if isinstance(usage, dict) else {}


def _short(text: Any) -> str:
    return " ".join(str(text).split())[:300]
