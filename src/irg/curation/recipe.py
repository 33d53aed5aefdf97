"""What a data recipe can say: one dataclass for each kind of source, teacher and judge (``docs/data.md``).

Fields marked by :func:`pace` say how fast or where, not what: they do not decide a stage's content.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from irg.endpoints import Endpoint

_PACE = {"pace": True}
_ENDPOINT_CONTENT = ("model", "extra")


def pace(default: Any) -> Any:
    """A field that has no part in a stage's content."""
    return field(default=default, metadata=_PACE)


def content(config: Any) -> Any:
    """What of a configuration decides the content of what it makes, as plain JSON."""
    if isinstance(config, Endpoint):
        return {"at": config.identity or config.url, "corrections": config.corrections} | {
            name: getattr(config, name) for name in _ENDPOINT_CONTENT
        }
    if dataclasses.is_dataclass(config):
        fields = [one for one in dataclasses.fields(config) if not one.metadata.get("pace")]
        return {one.name: content(getattr(config, one.name)) for one in fields}
    if isinstance(config, list | tuple):
        return [content(one) for one in config]
    if isinstance(config, dict):
        return {name: content(value) for name, value in config.items()}
    return str(config) if isinstance(config, Path) else config


def check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be between 0 and 1, got {value}")


# ---- prompts


@dataclass(frozen=True)
class FileSource:
    """Prompts of the user: one a line, JSON lines with ``prompt``, or parquet/CSV with a prompt column."""

    kind: Literal["file"]
    path: str
    column: str = "prompt"
    license: str = "unknown"
    name: str = ""
    limit: int | None = None


@dataclass(frozen=True)
class HubSource:
    """Prompts of a data set on the Hugging Face hub: one of its files (parquet, CSV, JSON lines or text)."""

    kind: Literal["hub"]
    repo: str
    file: str
    revision: str = "main"
    column: str = "prompt"
    license: str = "unknown"
    limit: int | None = None


@dataclass(frozen=True)
class TaxonomySource:
    """Our own taxonomy: so many prompts of each category, by grammar or by a model behind an endpoint."""

    kind: Literal["taxonomy"]
    quotas: dict[str, int]
    endpoint: Endpoint | None = None
    temperature: float = 1.0
    together: int = 20  # prompts asked for in one call of the endpoint


@dataclass(frozen=True)
class MiniSource:
    """Requests of the mini world. ``repairs`` of them become two-turn rows, the others one-turn rows."""

    kind: Literal["miniworld"]
    rows: int
    repairs: float = 0.5
    weights: dict[str, float] | None = None
    sprites: Literal["fluent", "builtin"] = "fluent"
    vocab: Literal["core", "geneval", "full"] = "geneval"

    def __post_init__(self) -> None:
        check_share("repairs", self.repairs)


Source = FileSource | HubSource | TaxonomySource | MiniSource


@dataclass(frozen=True)
class Prompts:
    """Where prompts come from.

    Attributes:
        first_turns: share of prompts that become one-turn rows (sources that decide that themselves aside).
        samples: rows made from each prompt.
        repeats: a prompt may come more than once (the mini world: its requests differ though its prompts agree).
    """

    sources: list[Source]
    first_turns: float = 0.3
    samples: int = 1
    repeats: bool = False

    def __post_init__(self) -> None:
        check_share("first_turns", self.first_turns)
        if not self.sources:
            raise ValueError("sources: name at least one")


@dataclass(frozen=True)
class Sift:
    """What is passed over before anything is made.

    Attributes:
        near: Jaccard similarity from which prompts are near-duplicates; null keeps them.
        script: the script that letters must be in, such as ``latin``; null takes any.
        blocked: a file of words, one a line; a prompt with one of them is passed over.
        benchmarks: folder with the five benchmarks' files (null: those that were fetched before; nothing is now).
        overlap: Jaccard similarity to a benchmark's prompt from which a prompt is contaminated.
        templates: whether a prompt is contaminated that fills a benchmark's template with the same words.
        compare: with the benchmarks at all; a set that was not compared cannot be certified.
    """

    near: float | None = 0.8
    script: str | None = None
    blocked: str | None = None
    benchmarks: str | None = None
    overlap: float = 0.7
    templates: bool = True
    compare: bool = True

    def __post_init__(self) -> None:
        for name in ("near", "overlap"):
            if getattr(self, name) is not None:
                check_share(name, getattr(self, name))


# ---- drafts


@dataclass(frozen=True)
class ModelDrafts:
    """Drafts by an irg model. ``options`` are settings of ``irg generate`` by name."""

    kind: Literal["model"]
    model: str = "mini"
    temperature: float = 0.5
    options: dict[str, Any] = field(default_factory=dict)
    batch: int = pace(32)


@dataclass(frozen=True)
class MiniDrafts:
    """Drafts of the mini world: the right scene, spoiled in ``flawed`` of all rows; of these, ``misplanned`` were
    already thought wrong: T1 says what was drawn, not what was asked for. ``slips`` of all rows are instead drawn just
    as T1 plans, which narrowly misses a relation that was asked for."""

    kind: Literal["miniworld"]
    flawed: float = 0.8
    misplanned: float = 0.0
    slips: float = 0.0
    softened: float = 0.3
    size: int = 128
    sprites: Literal["fluent", "builtin"] = "fluent"
    vocab: Literal["core", "geneval", "full"] = "geneval"

    def __post_init__(self) -> None:
        for name in ("flawed", "misplanned", "slips", "softened"):
            check_share(name, getattr(self, name))


# ---- reflections, thinking


@dataclass(frozen=True)
class EndpointReflections:
    """T2 by a vision-language model."""

    kind: Literal["endpoint"]
    endpoint: Endpoint
    temperature: float = 0.3
    max_tokens: int = 1500


@dataclass(frozen=True)
class MiniReflections:
    """T2 by the oracle, which sees with a ``detector`` (a folder; ``mini-judge`` is bundled) or knows the truth. With
    ``replan`` a T1 that is itself wrong is answered by a new plan; without, what was right in it stays in place."""

    kind: Literal["miniworld"]
    detector: str | None = None
    replan: bool = False
    size: int = 128
    sprites: Literal["fluent", "builtin"] = "fluent"


@dataclass(frozen=True)
class EndpointThinking:
    """T1 of one-turn rows by a vision-language model that sees the image."""

    kind: Literal["endpoint"]
    endpoint: Endpoint
    temperature: float = 0.3
    max_tokens: int = 800


@dataclass(frozen=True)
class MiniThinking:
    """T1 of one-turn rows by the oracle."""

    kind: Literal["miniworld"]
    sprites: Literal["fluent", "builtin"] = "fluent"


# ---- judges


@dataclass(frozen=True)
class EndpointJudge:
    """A vision-language model that scores from 0 to 10."""

    kind: Literal["endpoint"]
    endpoint: Endpoint
    name: str = "vlm"
    temperature: float = 0.0
    max_tokens: int = 500


@dataclass(frozen=True)
class MiniJudge:
    """The mini world's verdict: 10 or less by what a detector finds wrong, or by the truth of the scene (null)."""

    kind: Literal["miniworld"]
    name: str = "world"
    detector: str | None = None
    size: int = 128
    sprites: Literal["fluent", "builtin"] = "fluent"


Judge = EndpointJudge | MiniJudge


# ---- targets


@dataclass(frozen=True)
class EndpointTargets:
    """Targets by an images endpoint: edits of the draft, or generations."""

    kind: Literal["endpoint"]
    endpoint: Endpoint
    edit: bool = True
    width: int = 1024
    height: int = 1024


@dataclass(frozen=True)
class DiffusersTargets:
    """Targets by a local diffusers pipeline. ``edit`` needs one that takes an image and an instruction."""

    kind: Literal["diffusers"]
    model: str
    edit: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    batch: int = pace(4)
    device: str = pace("cuda")


@dataclass(frozen=True)
class ModelTargets:
    """The best of ``best_of`` images that an irg model draws, by the verdict of a judge."""

    kind: Literal["model"]
    judge: Judge
    model: str = "mini"
    best_of: int = 4
    temperature: float = 0.7
    options: dict[str, Any] = field(default_factory=dict)
    batch: int = pace(32)


@dataclass(frozen=True)
class MiniTargets:
    """Targets rendered from the layout that T2 ends with (or, for one-turn rows, from a right scene)."""

    kind: Literal["miniworld"]
    size: int = 128
    sprites: Literal["fluent", "builtin"] = "fluent"


# ---- export


@dataclass(frozen=True)
class Keep:
    """Which finished rows are exported. Scores are 0 to 10.

    Attributes:
        following, quality, preservation: least scores of the target, by every judge.
        gain: the target's following + quality must exceed the draft's by more than this, in both orders.
        nothing_wrong: keep rows whose reflection finds nothing wrong, if the target is no worse than the draft.
        where: further conditions on columns, such as ``vlm_target_quality >= 6``.
        like: folder of images that must not be in the set; ``distance``: how many of 64 bits of the perceptual hash
            may differ for an image to be taken for one of them.
    """

    following: float = 0.0
    quality: float = 0.0
    preservation: float = 0.0
    gain: float = 0.0
    nothing_wrong: bool = True
    where: list[str] = field(default_factory=list)
    like: str | None = None
    distance: int = 6


@dataclass(frozen=True)
class Export:
    """How the set is written.

    Attributes:
        out: default: ``export`` in the build's folder.
        shard_mb: most megabytes of images in one file.
        validation: share of prompts that go to ``val``.
        conversation: learning modes to write in the authors' format as well.
        times: whether the column ``seconds`` is filled; the rest is the same bytes whoever builds it.
    """

    out: str | None = None
    title: str = "Interleaved reasoning trajectories"
    license: str = "other"
    shard_mb: float = 256.0
    validation: float = 0.01
    seed: int = 0
    conversation: list[str] = field(default_factory=list)
    times: bool = True
    keep: Keep = field(default_factory=Keep)

    def __post_init__(self) -> None:
        check_share("validation", self.validation)
        if self.shard_mb <= 0:
            raise ValueError(f"shard_mb must be above 0, got {self.shard_mb}")


@dataclass(frozen=True)
class Vllm:
    """A vLLM on Ray's own GPUs, which answers a stage's questions instead of the endpoint (``ray.data.llm``).

    Attributes:
        model: its folder or hub id; empty: the endpoint's ``model``.
        replicas: engines side by side.
        batch: questions that an engine gets at a time.
        engine: arguments of vLLM's engine, such as ``{tensor_parallel_size: 4, max_model_len: 16384}``.
        options: further fields of ``vLLMEngineProcessorConfig``, such as ``{accelerator_type: H100}``.
    """

    model: str = ""
    replicas: int = 1
    batch: int = 32
    engine: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("replicas", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class Ray:
    """For ``engine: ray``; the dictionaries are by stage (``reflect``, ``judge-NAME``, ...).

    Attributes:
        address: of a cluster, null for this machine.
        workers, gpus: workers of a stage, and GPUs of each.
        vllm: stages of endpoints that a local vLLM does instead: same instructions, same checks, same answers on disk.
    """

    address: str | None = None
    workers: dict[str, int] = field(default_factory=dict)
    gpus: dict[str, float] = field(default_factory=dict)
    vllm: dict[str, Vllm] = field(default_factory=dict)


@dataclass(frozen=True)
class DataRecipe:
    """A build. A stage that is null is left out.

    Attributes:
        way: ``refine``: reflect on the draft, then make the target from it; ``independent``: the paper's way.
        budget: most that all endpoints together may cost, in the currency of their prices; null: no cap.
        blocks_at_once: blocks in work at a time (endpoints of several stages are then busy together).
        processes: for the mini world's stages.
        hashes: compute perceptual hashes of the images.
    """

    out: str
    prompts: Prompts
    draft: ModelDrafts | MiniDrafts | None = None
    reflect: EndpointReflections | MiniReflections | None = None
    target: EndpointTargets | DiffusersTargets | ModelTargets | MiniTargets | None = None
    think: EndpointThinking | MiniThinking | None = None
    judges: list[Judge] = field(default_factory=list)
    sift: Sift = field(default_factory=Sift)
    way: Literal["refine", "independent"] = "refine"
    hashes: bool = False
    seed: int = 0
    budget: float | None = None
    engine: Literal["files", "ray"] = "files"
    rows_per_block: int = 512
    blocks_at_once: int = 4
    processes: int = 1
    export: Export = field(default_factory=Export)
    ray: Ray = field(default_factory=Ray)

    def __post_init__(self) -> None:
        for name in ("rows_per_block", "blocks_at_once", "processes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        names = [judge.name for judge in self.judges]
        if bad := next((name for name in names if not name.isidentifier() or names.count(name) > 1), None):
            raise ValueError(f"judges: each needs a name of its own, made of letters, digits and _; got {bad!r}")
