"""The OpenAPI document's parts that FastAPI can't derive: errors, streams, forms."""

from typing import Any

from pydantic import BaseModel


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """Every error of every route."""

    error: ErrorDetail


_REASONS = {
    400: "Something in the request is not usable; `param` names it",
    401: "No API key, or an unknown one",
    403: "A web page of another origin, or another host's name",
    404: "No such model or address",
    405: "The address takes another method",
    408: "The body took too long",
    413: "The body is too large",
    422: "The model answered in words and drew no image",
    429: "Too many requests wait; `retry-after` says when to come again",
    500: "The request failed while it ran",
    503: "The model is being loaded, or the server is ending",
    504: "The request took too long",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": reason, "model": ErrorAnswer} for status, reason in _REASONS.items()
}
# Before OpenAPI 3.2 the schema of a stream is that of each event.
_EVENT = {
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["data"],
}
STREAM: dict[str, Any] = {
    "description": "The answer; with `stream` events, each with its `type` in its JSON data",
    "content": {"text/event-stream": {"schema": _EVENT}},
}


def form_of(kind: type[BaseModel], files: str) -> dict[str, Any]:
    """The request body of a form with these fields and one or more files."""
    schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
    properties = {name: schema["properties"][name] for name in schema["properties"] if name != "extra_body"}
    properties[files] = {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1}
    form = {
        "type": "object",
        "properties": properties,
        "required": [*schema["required"], files],
        "additionalProperties": False,
    }
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}}}
