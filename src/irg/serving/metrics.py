"""What ``/metrics`` shows, in Prometheus' format."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from irg.results.trajectory import Trajectory

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500)


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        PlatformCollector(registry)
        ProcessCollector(registry=registry)  # memory and time of the process
        self.requests = Counter("irg_http_requests", "answers", ["route", "status"], registry=registry)
        self.request_seconds = Histogram(
            "irg_http_request_seconds", "from request to last byte", ["route"], buckets=_SECONDS, registry=registry
        )
        self.stage_seconds = Histogram(
            "irg_stage_seconds",
            "queue, thinking, drawing, whole",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.engine_seconds = Gauge("irg_engine_seconds", "spent by the engine", ["phase"], registry=registry)
        self.running = Gauge("irg_running", "images that are being made", registry=registry)
        self.waiting = Gauge("irg_waiting", "images that wait", registry=registry)
        self.cache_tokens = Gauge("irg_kv_cache_tokens", "tokens held in the KV cache", registry=registry)
        self.images = Counter("irg_images", "images drawn, all rounds", registry=registry)
        self.tokens = Counter("irg_tokens", "tokens written", registry=registry)
        self.rounds = Histogram("irg_rounds", "images after the first", buckets=(0, 1, 2, 3, 5, 8), registry=registry)
        self.stops = Counter("irg_stops", "why requests ended", ["reason"], registry=registry)
        self.rejections = Counter("irg_rejections", "requests that were not begun", ["reason"], registry=registry)
        self.device_memory = Gauge("irg_device_memory_bytes", "of the accelerator", ["kind"], registry=registry)

    def finished(self, trajectory: Trajectory, seconds: float) -> None:
        """Count a request that ended well."""
        self.stage_seconds.labels("whole").observe(seconds)
        for turn in trajectory.turns:
            for stage, spent in turn.seconds.items():
                self.stage_seconds.labels(stage).observe(spent)
        drawn = sum(turn.image is not None and not turn.given for turn in trajectory.turns)
        self.images.inc(drawn)
        self.tokens.inc(trajectory.tokens)
        self.rounds.observe(max(0, drawn - 1))
        self.stops.labels(trajectory.stop_reason.partition(":")[0] or "rounds").inc()

    def text(self) -> bytes:
        """The page."""
        import torch

        if torch.cuda.is_available():
            self.device_memory.labels("allocated").set(torch.cuda.memory_allocated())
            self.device_memory.labels("reserved").set(torch.cuda.memory_reserved())
        return generate_latest(self.registry)
