"""The app: routes behind the guard, the model loaded while the server already answers."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI

from irg.serving import chat_api, errors, images_api, models_api, responses_api
from irg.serving.auth import ApiKeys
from irg.serving.guard import Guard
from irg.serving.options import ServerOptions
from irg.serving.service import Load, Service
from irg.version import __version__


def make_app(
    load: Load,
    options: ServerOptions | None = None,
    keys: ApiKeys | None = None,
    loaded: Callable[[Service], None] = lambda service: None,
) -> FastAPI:
    """An ASGI app that serves one model.

    Args:
        load: reads the model; called when the app starts, in a thread.
        loaded: called in that thread when the model is there, or can't be (``service.problem`` says why).
    """
    service = Service(load, options or ServerOptions(), keys or ApiKeys())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start(lambda: loaded(service))
        yield
        await service.close()

    app = FastAPI(title="irg", version=__version__, lifespan=lifespan, docs_url="/docs", redoc_url=None)
    app.state.service = service
    for module in (images_api, chat_api, responses_api, models_api):
        app.include_router(module.router)
    errors.install(app)
    if service.page:
        from irg.serving.ui.page import mount

        app = mount(app, service)
    app.add_middleware(Guard, service=service)
    return app
