"""Errors in OpenAI's shape: ``{"error": {"message", "type", "param", "code"}}``, for everything that goes wrong."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from irg.recipes import choose

INVALID = "invalid_request_error"
NO_RETRY = {"x-should-retry": "false"}
"""For errors after work has begun: OpenAI's client would run a slow request three times."""
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An answer that is an error.

    Attributes:
        status: of HTTP.
        param: the request's field that it is about.
        code: a word for programs.
        headers: beside the usual ones, such as ``retry-after``.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.headers = dict(headers or {})

    @property
    def type(self) -> str:
        """The kind of error, as OpenAI calls it."""
        return "server_error" if self.status >= 500 else _TYPES.get(self.status, INVALID)

    def body(self) -> dict[str, Any]:
        """The JSON of the answer, which is also the data of an event in a stream."""
        return {"error": {"message": str(self), "type": self.type, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The answer. ASCII: a message quotes what a request held, valid Unicode or not."""
        content = json.dumps(self.body()).encode("ascii")
        return Response(content, self.status, self.headers, media_type="application/json")


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A request that can't be carried out as it is."""
    return ApiError(400, message, param=param, code=code)


def failed(error: BaseException) -> ApiError:
    """A request that failed while it ran. What went wrong inside is for the log, not for the client."""
    if type(error).__name__ == "OutOfMemoryError":
        return ApiError(500, "the request needs more memory than is there", code="out_of_memory", headers=NO_RETRY)
    return ApiError(500, "the request failed while it ran", code="generation_failed", headers=NO_RETRY)


def no_image(text: str | None) -> ApiError:
    """A request for an image that the model, as some protocols let it, answered in words instead."""
    message = "the model answered in words and drew no image"
    return ApiError(422, f"{message}: {text}" if text else message, code="no_image", headers=NO_RETRY)


def timed_out(seconds: float, begun: bool) -> ApiError:
    """A request that took too long."""
    where = "while it ran" if begun else "before it began"
    headers = NO_RETRY if begun else {"retry-after": "10"}
    return ApiError(504, f"the request ran out of its {seconds:g} seconds {where}", code="timeout", headers=headers)


def of_validation(errors: Sequence[ErrorDetails | Mapping[str, Any]], known: Sequence[str] = ()) -> ApiError:
    """The first mistake of a request that does not fit its schema, and how many more there are."""
    first = errors[0]
    place = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
    param = ".".join(place) or None
    if first["type"] == "json_invalid":
        return invalid("the body is not valid JSON", code="invalid_json")
    if first["type"] == "extra_forbidden":
        return invalid(
            f"unknown field {param!r}{choose(place[-1], known) if place else ''}", param, "unknown_parameter"
        )
    if first["type"] == "missing":
        what = f"{param!r} is missing" if param else "the body is missing; it must be a JSON object"
        return invalid(what, param, "missing_parameter")
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    message = str(first["msg"]).removeprefix("Value error, ")
    return invalid(f"{param}: {message}{more}" if param else message + more, param, "invalid_value")


def install(app: FastAPI) -> None:
    """Answer every exception of the app in this shape."""

    def api_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return error.response()

    def validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return of_validation(error.errors(), _fields(request)).response()

    def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        messages = {404: f"there is no {request.url.path}", 405: f"{request.method} is not allowed here"}
        message = messages.get(error.status_code, str(error.detail))
        return ApiError(error.status_code, message, headers=error.headers).response()

    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(RequestValidationError, validation)
    app.add_exception_handler(HTTPException, http)


def _fields(request: Request) -> list[str]:
    """The names of the fields that a route's body may have."""
    field = getattr(request.scope.get("route"), "body_field", None)
    model = getattr(field, "type_", None) or getattr(getattr(field, "field_info", None), "annotation", None)
    return list(getattr(model, "model_fields", ()))
