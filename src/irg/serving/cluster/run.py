"""``irg serve --ray``: a front and replicas of the model on a Ray cluster, until a signal."""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, HTTPOptions
from ray.serve.schema import LoggingConfig
from starlette.applications import Starlette

from irg.serving.auth import ApiKeys
from irg.serving.cluster.replica import Replica
from irg.serving.options import ServerOptions

APP, REPLICA = "irg", "replica"
_UPSCALE_S, _DOWNSCALE_S = 5.0, 300.0


@dataclass(frozen=True)
class ClusterOptions:
    """How many replicas there are.

    Attributes:
        replicas: at least.
        max_replicas: at most; None: as many as at least.
        gpus: of a replica; None: one if the cluster has any, else none.

    Raises:
        ValueError: the numbers can't be.
    """

    replicas: int = 1
    max_replicas: int | None = None
    gpus: float | None = None

    def __post_init__(self) -> None:
        if self.replicas < 1:
            raise ValueError(f"replicas must be at least 1, got {self.replicas}")
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas must be at least replicas ({self.replicas}), got {self.max_replicas}")
        if self.gpus is not None and self.gpus < 0:
            raise ValueError(f"gpus must not be negative, got {self.gpus}")


def run_until_told(
    model: dict[str, Any], options: ServerOptions, keys: ApiKeys, cluster: ClusterOptions, say: Callable[[str], None]
) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish what runs.

    Joins the cluster that RAY_ADDRESS names, else starts one on this machine that ends with the server.

    Args:
        model: arguments of ``IRGPipeline.from_pretrained``.

    Raises:
        RuntimeError: Ray or the replicas could not be started; the message has the reason.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(include_dashboard=False, logging_level=logging.WARNING)
    except Exception as error:  # a plain Exception where its processes need too long to start
        raise RuntimeError(f"Ray could not be started or joined: {error}") from error
    try:
        with _signalled() as told:  # after ray.init, which has handlers of its own
            http = HTTPOptions(host=options.host, port=options.port)
            serve.start(http_options=http, logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False))
            serve.run(_application(model, options, keys, cluster), name=APP, route_prefix="/")
            say(f"Listening on http://{options.host}:{options.port}")
            say(f"Ready: {model['model']}, replicas: {cluster.replicas}")
            told.wait()
            serve.delete(APP)
            serve.shutdown()
    finally:
        ray.shutdown()


def _application(model: dict[str, Any], options: ServerOptions, keys: ApiKeys, cluster: ClusterOptions) -> Any:
    limits = options.limits
    gpus = cluster.gpus
    if gpus is None:
        gpus = 1.0 if ray.cluster_resources().get("GPU") else 0.0
    # each replica has a queue of its own for the images of its requests; requests wait for a replica in Ray's
    inside = replace(options, store_urls=False, page=False)  # a page's requests would meet another replica each time
    replicas = serve.deployment(Replica).options(
        name=REPLICA,
        max_ongoing_requests=limits.max_running,
        max_queued_requests=limits.max_waiting,
        graceful_shutdown_timeout_s=limits.shutdown_s,
        ray_actor_options={"num_cpus": 1, "num_gpus": gpus},
        **_scaling(cluster, limits.max_running),
    )

    def build() -> Starlette:
        from irg.serving.cluster.front import make_front

        return make_front(lambda: serve.get_deployment_handle(REPLICA, app_name=APP), options, keys)

    front = serve.deployment(serve.ingress(build)()).options(
        name="front",
        max_ongoing_requests=limits.max_connections,
        graceful_shutdown_timeout_s=limits.shutdown_s,
        ray_actor_options={"num_cpus": 0},
    )
    return front.bind(replicas.bind(model, inside))


def _scaling(cluster: ClusterOptions, running: int) -> dict[str, Any]:
    """A fixed number of replicas, or as many as keep the requests of each near what it runs at once."""
    most = cluster.max_replicas or cluster.replicas
    if most == cluster.replicas:
        return {"num_replicas": most}
    config = AutoscalingConfig(
        min_replicas=cluster.replicas,
        max_replicas=most,
        target_ongoing_requests=running,
        upscale_delay_s=_UPSCALE_S,
        downscale_delay_s=_DOWNSCALE_S,
    )
    return {"autoscaling_config": config}


@contextlib.contextmanager
def _signalled() -> Iterator[threading.Event]:
    """An event that SIGTERM or Ctrl-C sets."""
    told = threading.Event()
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda *_: told.set()) for number in numbers]
    try:
        yield told
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
