"""What a training run is made of: typed, strict, readable from YAML (:mod:`irg.recipes`)."""

import re
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from typing import Any, Literal

from irg.deprecation import renamed
from irg.learning.modes import MODES


class Draw(IntEnum):
    """What a run draws random numbers for. Each has generators of its own: ``generator(seed, Draw.NOISE, step, ...)``
    (:mod:`irg.randomness`), so no state of a generator is ever kept."""

    SLICE_ORDER = 1  # epoch
    ROW_ORDER = 2  # epoch, slice, chunk
    DROPOUT = 3  # data stream, number of the draw
    MODE = 4  # data stream, number of the draw
    NOISE_LEVEL = 5  # step, data stream
    NOISE = 6  # step, data stream
    VALIDATION = 7  # pack
    PROMPTS = 8  # epoch
    ROLLOUT = 9  # step
    EVALUATION = 10
    DRAWING = 11  # step, 0 for noise levels or 1 for noise, of images that rollouts drew


@dataclass(frozen=True)
class Mixture:
    """Sampling weight of every mode (0 = off), and the modes every pack must contain at least one sample of."""

    initial_thinking_understanding: float = 0.0
    initial_thinking_generation: float = 0.0
    initial_full: float = 0.0
    improving_thinking_understanding: float = 0.0
    improving_thinking_generation: float = 0.0
    improving_full: float = 0.0
    direct: float = 0.0
    unconditional: float = 0.0
    mandatory: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        weights = self.weights()
        for mode, weight in weights.items():
            if weight < 0:
                raise ValueError(f"mixture.{mode} must not be negative, got {weight}")
        for mode in self.mandatory:
            if mode not in MODES:
                raise ValueError(f"mixture.mandatory: unknown mode {mode!r}; the modes are {', '.join(MODES)}")
            if not weights[mode]:
                raise ValueError(f"mixture.mandatory: {mode} has weight 0; give it a weight or leave it out")

    def weights(self) -> dict[str, float]:
        """Mode -> weight."""
        return {mode: getattr(self, mode) for mode in MODES}


@dataclass(frozen=True)
class Dropout:
    """Condition dropout, per part: probability that a text, a ViT image, a VAE image is left out; for ``thinking``,
    that the thinking is left out of what a reflection sees, which then has to look."""

    text: float = 0.0
    vit: float = 0.0
    vae: float = 0.3
    thinking: float = renamed(was="plan", default=0.0)

    def __post_init__(self) -> None:
        for name, p in asdict(self).items():
            if not 0 <= p < 1:
                raise ValueError(f"dropout.{name} must be in [0, 1), got {p}")


@dataclass(frozen=True)
class Optimizer:
    """AdamW as in the paper, AdamW with 8-bit moments (torchao), or Muon for the matrices inside the layers with AdamW
    for the rest (one process only: it needs whole matrices)."""

    kind: Literal["adamw", "adamw8bit", "muon"] = "adamw"
    lr: float = 2e-5
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-15
    weight_decay: float = 0.0
    muon_lr: float = 0.01
    muon_momentum: float = 0.95
    clip: float = 1.0
    warmup: int = 0
    cooldown: int = 0  # steps of linear decay to 0 at the end; 0 = constant rate

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.muon_lr <= 0 or self.clip <= 0:
            raise ValueError("optimizer: lr, muon_lr and clip must be positive")
        if self.kind == "adamw8bit" and self.eps < 1e-8:
            raise ValueError(
                f"optimizer.eps {self.eps:g} is too small for adamw8bit, whose moments round to 0: use 1e-8"
            )
        if self.warmup < 0 or self.cooldown < 0:
            raise ValueError("optimizer: warmup and cooldown count steps and must not be negative")


@dataclass(frozen=True)
class Parallel:
    """How the step is spread over processes and fitted into memory. Start the run under ``torchrun`` for several."""

    replicas: int = 1  # HSDP: copies of the sharded model; 1 = sharded over all ranks (FSDP)
    accumulate: int = 1  # packs a rank runs for one optimizer step
    precision: Literal["float32", "bfloat16"] = "float32"  # of the forward; master weights and reductions are float32
    recompute: Literal["none", "selective", "full"] = "none"  # activation checkpointing, layer by layer
    attention: Literal["auto", "dense", "shared", "flex"] = "auto"  # auto: flex on CUDA, shared on a CPU
    compile: bool = False  # torch.compile of every layer

    def __post_init__(self) -> None:
        if self.replicas < 1 or self.accumulate < 1:
            raise ValueError("parallel: replicas and accumulate must be at least 1")


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters on linear layers of both experts. ``rank`` 0 trains the whole model instead."""

    rank: int = 0
    alpha: float = 0.0  # the update is alpha / rank x B A; 0 means alpha = rank
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    base: Literal["bfloat16", "float32", "nf4"] = "bfloat16"  # how the frozen weights are held; nf4 needs torchao
    merge: bool = True  # also write the model with the adapters merged in, besides the adapters

    def __post_init__(self) -> None:
        if self.rank < 0 or self.alpha < 0:
            raise ValueError("lora: rank and alpha must not be negative")
        if self.rank and not self.targets:
            raise ValueError("lora.targets: name at least one linear layer, such as q_proj")


@dataclass(frozen=True)
class Images:
    """Sizes, in pixels, that training images are brought to; null keeps the model's own rule. And how they are read:
    the autoencoder's mean, or a sample of its posterior (as the reference does)."""

    vae_min: int | None = None
    vae_max: int | None = None
    vit_min: int | None = None
    vit_max: int | None = None
    latents: Literal["mean", "sample"] = "mean"


@dataclass(frozen=True)
class Guard:
    """When a step is skipped, and when the run gives up."""

    spike: float = 0.0  # skip steps whose gradient norm is this many times the running average; 0 = off
    patience: int = 50  # skipped steps in a row after which the run stops

    def __post_init__(self) -> None:
        if self.spike and self.spike <= 1:
            raise ValueError(f"guard.spike must be 0 (off) or more than 1, got {self.spike}")
        if self.patience < 1:
            raise ValueError(f"guard.patience must be at least 1, got {self.patience}")


@dataclass(frozen=True)
class Samples:
    """Images drawn from fixed prompts with the averaged weights, into ``out/samples``."""

    every: int = 0  # steps; 0 = never
    prompts: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)  # of ``irg generate``: mode, height, width, num_timesteps...
    seed: int = 0

    def __post_init__(self) -> None:
        if self.every < 0:
            raise ValueError("samples.every counts steps and must not be negative")
        if self.every and not self.prompts:
            raise ValueError("samples.prompts: give at least one prompt, or set samples.every to 0")

    def due(self, step: int) -> bool:
        """Whether they are drawn after so many steps."""
        return self.every > 0 and step % self.every == 0


@dataclass(frozen=True)
class TrainRecipe:
    """One stage of training. Paths are relative to where the command runs."""

    model: str  # to start from: a folder, a bundled model or a hub id; the EMA weights of a folder that has them
    out: str
    steps: int  # what the learning-rate schedule is laid out for
    mixture: Mixture
    data: tuple[str, ...] = ()  # trajectory parquet files or folders of them
    conversations: dict[str, tuple[str, ...]] = field(
        default_factory=dict
    )  # mode -> parquet with a conversation column
    stream: bool = False  # read rows when they are needed instead of holding all of them in memory
    lookahead: int = 32  # samples that a pack is chosen from
    dropout: Dropout = field(default_factory=Dropout)
    optimizer: Optimizer = field(default_factory=Optimizer)
    tokens_per_pack: int = 40_000
    max_tokens_per_sample: int = 32_768
    noise_copies: int = 1  # noise levels per drawn image that share one pass over the context
    timestep_shift: float = 4.0
    ce_weight: float = 1.0
    mse_weight: float = 1.0
    detail_weight: float = 0.0  # how much more detailed cells count in the flow loss; 0 = all alike
    ema: float = 0.995
    ema_warmup: bool = True  # the average begins as min(ema, (1 + step) / (10 + step)); false: ema from the first step
    frozen: tuple[str, ...] = ()  # parts by name: vit_model, connector, und, gen, embed_tokens
    stop_after: int | None = None  # end before the schedule does
    seed: int = 0
    cache: str | None = None  # where encoded images are kept; default: out/cache
    threads: int = 0  # 0 = torch's choice
    device: str = "cpu"
    log_every: int = 10
    save_every: int = 100
    keep: int = 2
    trackers: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = ()  # besides log.jsonl
    images: Images = field(default_factory=Images)
    parallel: Parallel = field(default_factory=Parallel)
    lora: Lora = field(default_factory=Lora)
    guard: Guard = field(default_factory=Guard)
    samples: Samples = field(default_factory=Samples)
    validate_every: int = 0
    validation_rows: int = 24  # one-turn rows kept out of training when validate_every > 0
    kind: Literal["supervised", "rl"] = "supervised"  # rl: by reward (:class:`irg.learning.rl.recipe.RLRecipe`)

    def __post_init__(self) -> None:
        if self.steps < 1 or self.log_every < 1 or self.save_every < 1 or self.keep < 1:
            raise ValueError("steps, log_every, save_every and keep must be at least 1")
        if self.tokens_per_pack < 1 or self.max_tokens_per_sample < 1:
            raise ValueError("tokens_per_pack and max_tokens_per_sample must be at least 1")
        if self.seed < 0 or self.threads < 0 or self.validate_every < 0 or self.validation_rows < 1:
            raise ValueError("seed, threads and validate_every must not be negative, validation_rows at least 1")
        if not re.fullmatch(r"cpu|cuda(:\d+)?", self.device):
            raise ValueError(f"device must be cpu, cuda or cuda:N, got {self.device!r}")
        if self.stop_after is not None and not 1 <= self.stop_after <= self.steps:
            raise ValueError(f"stop_after must be from 1 to steps ({self.steps}), got {self.stop_after}")
        self._check_data()
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be in [0, 1), got {self.ema}")
        if self.timestep_shift <= 0:
            raise ValueError(f"timestep_shift must be positive, got {self.timestep_shift}")
        if self.detail_weight < 0:
            raise ValueError(f"detail_weight must not be negative, got {self.detail_weight}")
        if self.noise_copies < 1:
            raise ValueError(f"noise_copies must be at least 1, got {self.noise_copies}")

    def saves_at(self, step: int) -> bool:
        """Whether a checkpoint is made after so many steps, wherever the run ends."""
        return step % self.save_every == 0 or self.samples.due(step)

    def _check_data(self) -> None:
        if not any(self.mixture.weights().values()):
            raise ValueError("mixture: every weight is 0; give at least one mode a positive weight")
        if not self.data and not self.conversations:
            raise ValueError("data: name at least one trajectory parquet file or folder (or conversations)")
        for mode in self.conversations:
            if mode not in MODES:
                raise ValueError(f"conversations: unknown mode {mode!r}; the modes are {', '.join(MODES)}")
        if self.lookahead < 1:
            raise ValueError(f"lookahead must be at least 1, got {self.lookahead}")
