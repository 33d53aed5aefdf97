"""What a data recipe can say (``docs/data.md``). The kinds of its parts are where their stages are."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from irg.curation.content import check_share
from irg.curation.diffusers_stages import DiffusersTargets
from irg.curation.endpoint_stages import EndpointReflections, EndpointTargets, EndpointThinking
from irg.curation.model_stages import Judge, ModelDrafts, ModelTargets
from irg.curation.parts import Drafts, Parts, Reflections, Source, Strategy, Targets, Thinking
from irg.curation.sources import FileSource, HubSource
from irg.curation.taxonomy import TaxonomySource
from irg.deprecation import renamed
from irg.learning.modes import IRGL
from irg.recipes import choose
from irg.registry import DATA, Plugins


@dataclass(frozen=True)
class Prompts:
    """Where prompts come from.

    Attributes:
        first_turns: share of prompts that become one-turn rows (sources that decide that themselves aside).
        samples: rows made from each prompt.
        repeats: a prompt may come more than once (the mini world: its requests differ though its prompts agree).
    """

    sources: list[Annotated[FileSource | HubSource | TaxonomySource, Plugins(DATA, Source)]]
    first_turns: float = 0.3
    samples: int = 1
    repeats: bool = False

    def __post_init__(self) -> None:
        check_share("first_turns", self.first_turns)
        if not self.sources:
            raise ValueError("sources: name at least one")


@dataclass(frozen=True)
class Filter:
    """Which prompts are left out before anything is made.

    Attributes:
        near_duplicates: Jaccard similarity from which prompts are near-duplicates; null keeps them.
        script: the script that letters must be in, such as ``latin``; null takes any.
        blocklist: a file of words, one a line; a prompt with one of them is left out.
        decontaminate: whether to compare with the benchmarks; a set that was not compared can't be certified.
        benchmarks: folder with the five benchmarks' files (null: those that were fetched before; nothing is now).
        overlap: Jaccard similarity to a benchmark's prompt from which a prompt is contaminated.
        templates: whether a prompt is contaminated that fills a benchmark's template with the same words.
    """

    near_duplicates: float | None = renamed(was="near", default=0.8)
    script: str | None = None
    blocklist: str | None = renamed(was="blocked", default=None)
    decontaminate: bool = renamed(was="compare", default=True)
    benchmarks: str | None = None
    overlap: float = 0.7
    templates: bool = True

    def __post_init__(self) -> None:
        for name in ("near_duplicates", "overlap"):
            if getattr(self, name) is not None:
                check_share(name, getattr(self, name))


@dataclass(frozen=True)
class Keep:
    """Which finished rows are exported. Scores are 0 to 10.

    Attributes:
        following, quality, preservation: least scores of the target, by every judge.
        gain: the target's following + quality must exceed the draft's by more than this, in both orders.
        nothing_wrong: keep rows whose reflection finds nothing wrong, if the target is no worse than the draft.
        where: further conditions on columns, such as ``vlm_target_quality >= 6``.
        exclude_similar_to: folder of images that must not be in the set; ``distance``: how many of 64 bits of the
            perceptual hash may differ for an image to be taken for one of them.
    """

    following: float = 0.0
    quality: float = 0.0
    preservation: float = 0.0
    gain: float = 0.0
    nothing_wrong: bool = True
    where: list[str] = field(default_factory=list)
    exclude_similar_to: str | None = renamed(was="like", default=None)
    distance: int = 6


@dataclass(frozen=True)
class Export:
    """How the set is written.

    Attributes:
        out: default: ``export`` in the build's folder.
        shard_mb: most megabytes of images in one file.
        validation: share of prompts that go to ``val``.
        conversation: learning modes to write in the authors' format as well.
        times: whether the column ``seconds`` is filled; the rest is the same bytes in every build.
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
        if unknown := next((mode for mode in self.conversation if mode not in IRGL), None):
            raise ValueError(f"conversation: no mode {unknown!r}{choose(unknown, IRGL)}; there are {', '.join(IRGL)}")
        if self.shard_mb <= 0:
            raise ValueError(f"shard_mb must be above 0, got {self.shard_mb}")


@dataclass(frozen=True)
class Vllm:
    """A vLLM on Ray's own GPUs, which answers a stage's requests instead of the endpoint (``ray.data.llm``).

    Attributes:
        model: its folder or hub id; empty: the endpoint's ``model``.
        replicas: engines side by side.
        batch_size: requests that an engine gets at a time.
        engine_kwargs: arguments of vLLM's engine, such as ``{tensor_parallel_size: 4, max_model_len: 16384}``.
        options: further fields of ``vLLMEngineProcessorConfig``, such as ``{accelerator_type: H100}``.
    """

    model: str = ""
    replicas: int = 1
    batch_size: int = renamed(was="batch", default=32)
    engine_kwargs: dict[str, Any] = renamed(was="engine", default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("replicas", "batch_size"):
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
        strategy: ``refine``: reflect on the draft, then make the target from it; ``independent``: the target from the
            prompt alone, then the reflection from both images, as in the paper.
        budget: most that all endpoints together may cost, in the currency of their prices; null: no cap.
        concurrent_blocks: blocks in work at a time (endpoints of several stages are then busy together).
        processes: for stages that work in processes of their own (hashes, the mini world's).
        hashes: compute perceptual hashes of the images.
    """

    out: str
    prompts: Prompts
    draft: Annotated[ModelDrafts, Plugins(DATA, Drafts)] | None = None
    reflect: Annotated[EndpointReflections, Plugins(DATA, Reflections)] | None = None
    target: Annotated[EndpointTargets | DiffusersTargets | ModelTargets, Plugins(DATA, Targets)] | None = None
    think: Annotated[EndpointThinking, Plugins(DATA, Thinking)] | None = None
    judges: list[Judge] = field(default_factory=list)
    filter: Filter = renamed(was="sift", default_factory=Filter)
    strategy: Strategy = renamed(was="way", default="refine")
    hashes: bool = False
    seed: int = 0
    budget: float | None = None
    engine: Literal["files", "ray"] = "files"
    rows_per_block: int = 512
    concurrent_blocks: int = renamed(was="blocks_at_once", default=4)
    processes: int = 1
    export: Export = field(default_factory=Export)
    ray: Ray = field(default_factory=Ray)

    def __post_init__(self) -> None:
        for name in ("rows_per_block", "concurrent_blocks", "processes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        names = [judge.name for judge in self.judges]
        if bad := next((name for name in names if not name.isidentifier() or names.count(name) > 1), None):
            raise ValueError(f"judges: each needs a name of its own, made of letters, digits and _; got {bad!r}")

    @property
    def parts(self) -> Parts:
        """The parts that make rows."""
        return Parts(self.strategy, self.draft, self.reflect, self.target, self.think, tuple(self.judges))
