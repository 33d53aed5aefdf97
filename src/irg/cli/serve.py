"""``irg serve``: the model over HTTP, as OpenAI's API."""

import importlib.util
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any

from tyro.conf import arg

from irg.cli.arguments import ModelOptions, parse
from irg.critics.options import check_critic

KEYS = "IRG_API_KEYS"


@dataclass(frozen=True)
class ServeOptions(ModelOptions):
    """Serves one model until SIGTERM or Ctrl-C, which let running requests finish."""

    host: str = "127.0.0.1"
    """The address to listen on. Others than this machine's own need API keys."""
    port: int = 8000
    """0 takes a free one."""
    api_keys: str | None = None
    """A file of keys that let requests in, of lines as --new-key prints them. Keys may also stand in IRG_API_KEYS, with
    commas between them."""
    new_key: Annotated[str | None, arg(metavar="NAME")] = None
    """Print a new key and its line for the file of keys, and end."""
    model_names: Annotated[tuple[str, ...], arg(metavar="NAME...")] = ()
    """Other names that requests may call the model, such as gpt-image-1."""
    any_model_name: bool = False
    """Answer to whatever model name."""
    fit_sizes: bool = False
    """Draw a size that the model can't draw in the nearest shape at its usual size, instead of refusing it."""
    allow_critics: Annotated[tuple[str, ...], arg(metavar="CRITIC...")] = ()
    """Critics that requests may name, such as endpoint:MODEL."""
    image_hosts: Annotated[tuple[str, ...], arg(metavar="HOST...")] = ()
    """Hosts that images of requests may be fetched from: example.org (HTTPS), or http://HOST:PORT. One that leads to a
    private address is refused unless the address is named, too. Without any nothing is fetched."""
    allow_origins: Annotated[tuple[str, ...], arg(metavar="ORIGIN...")] = ()
    """Web pages that may call from a browser, such as https://example.org."""
    allow_hosts: Annotated[tuple[str, ...], arg(metavar="NAME...")] = ()
    """Names under which the server may be called, beside its address; * is any."""
    public_url: str | None = None
    """What the URLs of images begin with, behind a proxy."""
    no_page: bool = False
    """Leave out the web page, which is served if gradio is installed (extra ui) and no API keys are set."""
    log_prompts: bool = False
    """Write prompts into the log."""
    max_running: int = 8
    """Images that are made at once (or as many as memory has room for). With 1 no request changes another's result, not
    even by rounding."""
    max_waiting: int = 64
    """Images that may wait; beyond that requests are refused with 429."""
    max_images: int = 10
    """Images of one request."""
    max_pixels: int | None = None
    """Of an image to draw. Default: what the model draws."""
    max_steps: int = 200
    """Updates of an image."""
    max_rounds: int = 8
    """Times that an image is looked at and drawn again."""
    max_body_mb: float = 32.0
    """Megabytes of a request."""
    timeout_s: float = 600.0
    """Seconds in which a request must be answered, waiting included."""
    shutdown_s: float = 600.0
    """Seconds that running requests get when the server is told to end."""
    url_ttl_s: float = 3600.0
    """Seconds that the URL of an image works."""
    ray: bool = False
    """Serve by Ray Serve: several replicas of the model, on the cluster that RAY_ADDRESS names or on this machine."""
    replicas: int = 1
    """With --ray: replicas at least."""
    max_replicas: int | None = None
    """With --ray: replicas at most, by the number of requests. Default: as many as at least."""
    gpus_per_replica: float | None = None
    """With --ray. Default: 1 if the cluster has any, else 0."""


def main(argv: Sequence[str]) -> int:
    """Run the command; mistakes are told before the model is loaded.

    Raises:
        ValueError: an argument or the model is not acceptable, keys are missing, or the extra is not installed.
        OSError: the address can't be listened on.
    """
    options = parse(ServeOptions, argv, "irg serve", "Serve a model over HTTP, as OpenAI's API.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("irg serve runs in one process, not in those of torchrun; --ray serves by several replicas")
    needed = ("fastapi", "uvicorn", "sse_starlette", "python_multipart", "prometheus_client")
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        raise ValueError(f"irg serve needs {', '.join(missing)}: pip install 'irg[serve]'")
    if options.ray and importlib.util.find_spec("ray") is None:
        raise ValueError("irg serve --ray needs ray[serve]: pip install 'irg[serve,scale]'")
    from irg.serving.auth import ApiKeys, new_key

    if options.new_key is not None:
        key, line = new_key(options.new_key)
        print(f"The key, shown this once: {key}\nIts line for --api-keys: {line}")
        return 0
    keys = ApiKeys()
    if options.api_keys is not None:
        keys.add_file(options.api_keys)
    keys.add_plain(key.strip() for key in os.environ.pop(KEYS, "").split(",") if key.strip())
    return _serve(options, keys)


def _serve(options: ServeOptions, keys: Any) -> int:
    from irg.serving.options import Limits, ServerOptions

    limits = Limits(**{one.name: getattr(options, one.name) for one in fields(Limits) if hasattr(options, one.name)})
    own = {one.name for one in fields(ServerOptions)} & {one.name for one in fields(options)}
    chosen = ServerOptions(
        **{name: getattr(options, name) for name in own},
        critics=options.allow_critics,
        page=not options.no_page,
        limits=limits,
    )
    for critic in options.allow_critics:
        check_critic(critic)
    if not chosen.local and not keys:
        raise ValueError(f"--host {options.host} lets other machines in: give API keys (--api-keys FILE or {KEYS})")

    if options.ray:
        return _serve_by_ray(options, chosen, keys)
    for name in ("replicas", "max_replicas", "gpus_per_replica"):
        if getattr(options, name) != getattr(ServeOptions(), name):
            raise ValueError(f"--{name.replace('_', '-')} is for --ray")

    from irg.serving import logs
    from irg.serving.server import Server

    model = options.for_pipeline()

    def load() -> Any:
        from irg.reasoning.pipeline import IRGPipeline

        return IRGPipeline.from_pretrained(**model, say=_say)

    logs.install()
    Server(load, chosen, keys, _say).run_until_told()
    return 0


def _serve_by_ray(options: ServeOptions, chosen: Any, keys: Any) -> int:
    from irg.serving.cluster.run import ClusterOptions, run_until_told

    if chosen.port == 0:
        raise ValueError("--port 0 can't be had with --ray: give the port")
    cluster = ClusterOptions(options.replicas, options.max_replicas, options.gpus_per_replica)
    try:
        run_until_told(options.for_pipeline(), chosen, keys, cluster, _say)
    except RuntimeError as error:
        raise ValueError(str(error)) from None
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
