"""The recipe of a run by reward: that of any run, and what is learned from which reward."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from irg import registry
from irg.engine.settings import DrawSettings, SdeType, Solver
from irg.learning.recipe import Mixture, TrainRecipe
from irg.learning.rl.prompts import FilePrompts, PromptSource, TrajectoryPrompts
from irg.learning.rl.rewards import RewardTerm

Prompts = Annotated[FilePrompts | TrajectoryPrompts, registry.Plugins(registry.PROMPTS, PromptSource)]


@dataclass(frozen=True)
class Rollout:
    """How many texts are written in a step, and how."""

    prompts: int = 16
    samples: int = 8  # texts of each prompt
    temperature: float = 1.0
    max_tokens: int = 512
    at_once: int = 0  # prompts whose texts are written together, each text with keys and values of its own; 0: all
    workers: int = 0  # processes that make the rollouts, started by Ray, a GPU each; 0: the learning ones do it
    ahead: int = 0  # 1: workers make a step's rollouts while the step before is learned from (one step off-policy)

    def __post_init__(self) -> None:
        if self.prompts < 1 or self.samples < 2 or self.max_tokens < 1 or self.at_once < 0 or self.workers < 0:
            raise ValueError(
                "rollout: prompts and max_tokens must be at least 1, samples at least 2, at_once and workers not "
                "negative"
            )
        if self.workers and not self.at_once:
            raise ValueError("rollout.workers needs rollout.at_once: the prompts that a worker is given at a time")
        if self.ahead not in (0, 1):
            raise ValueError(f"rollout.ahead must be 0 or 1 (steps), got {self.ahead}")
        if self.ahead and not self.workers:
            raise ValueError("rollout.ahead needs rollout.workers: processes that make rollouts while others learn")
        if not 0 < self.temperature <= 10:
            raise ValueError(f"rollout.temperature must be above 0 and at most 10, got {self.temperature}")


@dataclass(frozen=True)
class Drawing:
    """How images are drawn in rollouts (without guidance), and how they are learned from; see :mod:`.nft` and
    :mod:`.flow_grpo`."""

    height: int = 1024
    width: int = 1024
    num_timesteps: int = 25  # points of the time grid
    timestep_shift: float = 3.0
    solver: Solver = "euler"
    learning: Literal["nft", "flow-grpo"] = "nft"
    beta: float = 1.0  # nft: distance of the implicit policies from the old one
    stochastic: SdeType = "sde"  # flow-grpo: how stochastic steps are made; see :func:`irg.engine.flow.stochastic_step`
    noise_level: float = 0.7  # flow-grpo: of stochastic steps
    window: int = 2  # flow-grpo: consecutive stochastic steps, in the noisier half of the sampler's
    clip: float = 0.1  # flow-grpo: a ratio counts from 1 - clip to 1 + clip
    kl: float = 0.0  # flow-grpo: weight of the divergence from the model that the run started from

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(f"drawing: height and width must be at least 1, got {self.height} x {self.width}")
        if self.beta <= 0:
            raise ValueError(f"drawing.beta must be positive, got {self.beta}")
        if not 0 < self.noise_level <= 10 or not 0 < self.clip < 1 or self.kl < 0:
            raise ValueError("drawing: noise_level must be above 0, clip above 0 and below 1, kl not negative")
        steps = self.num_timesteps - 1
        if not 1 <= self.window <= steps:
            raise ValueError(f"drawing.window must be from 1 to the {steps} steps, got {self.window}")
        if self.stochastic == "cps" and (self.noise_level > 1 or self.window == steps):
            raise ValueError(
                "drawing.stochastic cps: noise_level must be at most 1, and window less than the "
                f"{steps} steps, as the last has no noise; got {self.noise_level:g} and {self.window}"
            )
        of_grpo = ("stochastic", "noise_level", "window", "clip", "kl")
        usual, others = Drawing, ("beta",) if self.learning == "flow-grpo" else of_grpo
        if unused := [name for name in others if getattr(self, name) != getattr(usual, name)]:
            raise ValueError(f"drawing.{unused[0]} has no use with drawing.learning {self.learning}")
        DrawSettings(self.num_timesteps, self.timestep_shift, solver=self.solver)  # says what is out of range

    @property
    def last_window_start(self) -> int:
        """The last step that a window can begin with."""
        return max(0, self.num_timesteps // 2 - self.window)

    def check(self, stride: int) -> None:
        """Look the size over. ``stride``: pixels of a latent token.

        Raises:
            ValueError: it is not made of whole tokens.
        """
        if self.height % stride or self.width % stride:
            size = f"{self.height} x {self.width}"
            raise ValueError(f"drawing: height and width must be multiples of {stride}, got {size}")


@dataclass(frozen=True)
class Advantage:
    """See :mod:`.advantages`."""

    kind: Literal["rloo", "grpo"] = "rloo"
    scale: Literal["none", "group", "step"] = "none"  # divide by nothing, the group's standard deviation, the step's
    least_std: float = 0.01  # what is divided by is at least this
    clip: float = 0.0  # bound on the absolute value; 0: none
    malformed_penalty: float = 0.5

    def __post_init__(self) -> None:
        if self.least_std <= 0 or self.clip < 0 or self.malformed_penalty < 0:
            raise ValueError("advantage: least_std must be positive, clip and malformed_penalty not negative")


@dataclass(frozen=True)
class Credit:
    """What a trajectory of several images is worth; see :mod:`.credit`. The defaults are as published for
    UMM-Reflection, but for ``correct`` and ``rounds``."""

    rounds: int = 1  # texts (and images) after the first image
    correct: float = 0.5  # an image with at least this reward is right
    gain: float = 0.3
    further_gains: float = 0.3
    damage: float = 0.5
    false_stop: float = 0.5
    right_groups: int = 1  # prompts of a step that may go on from a first image that is right already

    def __post_init__(self) -> None:
        weights = (self.gain, self.further_gains, self.damage, self.false_stop)
        if self.rounds < 1 or self.right_groups < 0 or min(weights) < 0:
            raise ValueError("credit: rounds must be at least 1, right_groups and weights not negative")
        turns = self.rounds // 2  # from right to wrong and back: what that earns must not be more than it costs
        earned = turns * (self.gain + self.further_gains) - self.further_gains
        if turns and earned > turns * self.damage + 1e-9:
            raise ValueError(
                f"credit: with {self.rounds} rounds it pays to damage a right image and repair it: raise damage, or "
                "lower gain or further_gains"
            )


@dataclass(frozen=True)
class Loss:
    """See :mod:`.loss`."""

    average: Literal["token", "sequence"] = "token"
    clip_low: float = 0.2  # a ratio counts down to 1 - clip_low and up to 1 + clip_high; both 0: any
    clip_high: float = 0.2
    kl: float = 0.0  # weight of the divergence from the model that the run started from; 0: none, and no second model
    entropy: float = 0.0  # weight of the entropy bonus

    def __post_init__(self) -> None:
        if not 0 <= self.clip_low < 1 or self.clip_high < 0:
            raise ValueError("loss: clip_low must be in [0, 1), clip_high not negative")
        if self.kl < 0 or self.entropy < 0:
            raise ValueError("loss: kl and entropy must not be negative")

    @property
    def clips(self) -> bool:
        """Whether ratios are clipped."""
        return self.clip_low > 0 or self.clip_high > 0


@dataclass(frozen=True)
class Evaluate:
    """Mean rewards of one text for each of some prompts that are always the same."""

    every: int = 0  # steps; 0: never
    prompts: Prompts | None = None  # default: the run's own source, at a seed that it never trains on
    count: int = 64
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.every < 0 or self.count < 1 or not 0 <= self.temperature <= 10:
            raise ValueError("evaluate: every must not be negative, count at least 1, temperature from 0 to 10")


@dataclass(frozen=True)
class Limits:
    """When a run is given up: one of these was passed in ``patience`` steps in a row. 0 turns one off."""

    reward_failures: float = 0.2  # share of texts for which a reward failed
    malformed: float = 0.5  # share of malformed texts
    kl: float = 0.0  # mean divergence of a token from the reference, in nats
    entropy: float = 0.0  # mean entropy of a token, in nats: the least
    equal_groups: float = 0.0  # share of groups whose rewards are all equal, from which nothing is learned
    patience: int = 3

    def __post_init__(self) -> None:
        if min(self.reward_failures, self.malformed, self.kl, self.entropy, self.equal_groups) < 0 or self.patience < 1:
            raise ValueError("limits must not be negative, patience at least 1")


@dataclass(frozen=True)
class RLRecipe(TrainRecipe):
    """A run by reward. Without a ``mixture`` nothing is learned by imitation beside it."""

    mixture: Mixture = field(default_factory=Mixture)
    kind: Literal["rl"] = "rl"
    policy: Literal["thinking", "reflection", "drawing", "trajectory"] = "thinking"
    prompts: Prompts = field(kw_only=True)
    rewards: tuple[RewardTerm, ...] = field(kw_only=True)
    rollout: Rollout = field(default_factory=Rollout)
    drawing: Drawing = field(default_factory=Drawing)
    credit: Credit = field(default_factory=Credit)
    advantage: Advantage = field(default_factory=Advantage)
    loss: Loss = field(default_factory=Loss)
    minibatches: int = 1  # parts that a step's groups are split into, an optimizer step each
    epochs: int = 1  # times that they are gone through
    skip_equal_groups: bool = True  # leave out groups whose advantages are all 0
    supervised_weight: float = 1.0  # of the loss of the mixture's pack
    evaluate: Evaluate = field(default_factory=Evaluate)
    limits: Limits = field(default_factory=Limits)
    ema: float = 0.0
    log_every: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.rewards:
            raise ValueError("rewards: name at least one")
        names = [term.name for term in self.rewards]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"rewards: {twice} is named twice")
        if self.minibatches < 1 or self.epochs < 1:
            raise ValueError("minibatches and epochs must be at least 1")
        if self.minibatches > self.rollout.prompts:
            raise ValueError(f"minibatches {self.minibatches} is more than rollout.prompts {self.rollout.prompts}")
        if self.supervised_weight < 0:
            raise ValueError("supervised_weight must not be negative")
        if self.rollout.ahead and self.saves_at(1):
            raise ValueError(
                "rollout.ahead has no use where every step ends with a checkpoint, as no rollouts are made before it: "
                "raise save_every and samples.every"
            )
        self._check_policy()

    def _check_policy(self) -> None:
        """Refuse settings that the policy has no use for: who sets one expects it to count."""
        if self.policy != "trajectory" and self.credit != Credit():
            raise ValueError(f"credit is for policy trajectory, not {self.policy}")
        if self.policy not in ("drawing", "trajectory") and self.drawing != Drawing():
            raise ValueError(f"drawing is for policy drawing or trajectory, not {self.policy}")
        draws = self.policy in ("drawing", "trajectory")
        if draws and self.drawing.learning == "flow-grpo" and self.noise_copies != 1:
            raise ValueError(
                "noise_copies has no use with drawing.learning flow-grpo: it learns the sampler's own steps"
            )
        if self.policy == "trajectory" and self.drawing.learning == "nft" and self.rollout.ahead:
            raise ValueError(
                "rollout.ahead with policy trajectory needs drawing.learning flow-grpo: nft compares with the policy "
                "that drew, whose weights are gone by then"
            )
        if self.policy != "drawing":
            return
        if self.loss != Loss():
            raise ValueError("loss is of texts: policy drawing learns by drawing.beta alone")
        usual = Rollout()
        if (self.rollout.temperature, self.rollout.max_tokens) != (usual.temperature, usual.max_tokens):
            raise ValueError("rollout.temperature and rollout.max_tokens are of texts: policy drawing writes none")
        if self.limits.kl or self.limits.entropy:
            raise ValueError("limits.kl and limits.entropy are of texts: policy drawing logs neither")
        if "gen" in self.frozen:
            raise ValueError("frozen: policy drawing trains gen; freeze und to keep the texts")

    @property
    def targets_per_image(self) -> int:
        """How often an image that was drawn stands in its sample."""
        return self.drawing.window if self.drawing.learning == "flow-grpo" else self.noise_copies

    @property
    def measures_divergence(self) -> bool:
        """Whether the model that the run started from scores what is learned from."""
        return self.loss.kl > 0 or self.drawing.kl > 0

    @property
    def imitates(self) -> bool:
        """Whether a supervised pack is learned beside the rollouts."""
        return any(self.mixture.weights().values())

    @property
    def updates(self) -> int:
        """Optimizer steps of a step."""
        return self.minibatches * self.epochs

    def _check_data(self) -> None:
        if self.imitates:
            super()._check_data()
        elif self.validate_every:
            raise ValueError("validate_every measures rows of a mixture: give one, or set evaluate.every instead")
