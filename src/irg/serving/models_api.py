"""What is served, whether the server is well, and its numbers."""

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from irg.serving.answers import now
from irg.serving.capabilities import Capabilities
from irg.serving.documentation import ERRORS
from irg.serving.errors import ApiError
from irg.serving.metrics import CONTENT_TYPE
from irg.serving.service import Service, service_of

router = APIRouter(tags=["models"])
_STARTED = now()


class ModelAnswer(BaseModel):
    """A name that requests may call the model."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "irg"
    capabilities: dict[str, Any]


class ModelsAnswer(BaseModel):
    """All of them."""

    object: str = "list"
    data: list[ModelAnswer]


@router.get("/v1/models", responses={**ERRORS, 200: {"model": ModelsAnswer}})
async def models(request: Request) -> ModelsAnswer:
    """The model's names and what it can do."""
    return ModelsAnswer(data=_models(service_of(request)))


@router.get("/v1/models/{name:path}", responses={**ERRORS, 200: {"model": ModelAnswer}})
async def model(name: str, request: Request) -> ModelAnswer:
    """One of them."""
    for one in _models(service_of(request)):
        if one.id == name:
            return one
    raise ApiError(404, f"there is no model {name!r}", param="model", code="model_not_found")


def _models(service: Service) -> list[ModelAnswer]:
    pipe = service.loaded().pipe
    usual, sizes = pipe.defaults, pipe.sizes
    can = Capabilities.of(pipe.protocol, usual.critic, service.options)
    told = {
        "tasks": can.tasks,
        "modes": can.modes,
        "protocol": pipe.protocol.name,
        "size": f"{usual.width}x{usual.height}",
        "size_stride": sizes.stride,
        "max_side": sizes.largest,
        "output_formats": ["png", "jpeg", "webp"],
        "critics": can.critics,
        "max_rounds": can.max_rounds,
        "settings": usual.to_dict(),
        "limits": service.options.limits.to_dict(),
    }
    names = (pipe.name, *service.options.model_names)
    return [ModelAnswer(id=name, created=_STARTED, capabilities=told) for name in names]


@router.get("/health", response_class=Response, responses={500: ERRORS[500]})
@router.get("/healthz", include_in_schema=False)
async def health(request: Request) -> Response:
    """200 as long as the server does its work, also while the model is being loaded."""
    model = service_of(request).model
    if model is not None and not model.engine.alive:
        raise ApiError(500, "the engine has ended; the server must be started again", code="engine_ended")
    return Response()


@router.get("/ready", response_class=Response, responses={503: ERRORS[503]})
@router.get("/readyz", include_in_schema=False)
async def ready(request: Request) -> Response:
    """200 when requests can be taken."""
    service = service_of(request)
    if not service.ready:
        state = "is shutting down" if service.draining else "is not ready"
        raise ApiError(503, f"the server {state}", code="not_ready", headers={"retry-after": "5"})
    return Response()


@router.get("/metrics", response_class=PlainTextResponse, responses={401: ERRORS[401]})
async def metrics(request: Request) -> Response:
    """Prometheus' numbers."""
    return Response(service_of(request).scrape(), media_type=CONTENT_TYPE)
