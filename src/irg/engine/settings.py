"""How one image is sampled: plain numbers, no tensors."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from irg.recipes import build, choose

RenormType = Literal["global", "channel", "text_channel"]
Solver = Literal["euler", "adams", "dpm", "unipc"]
SdeType = Literal["sde", "cps"]
MAX_TIMESTEPS = 10_000


@dataclass(frozen=True)
class DrawSettings:
    """The sampler's settings for one image. The defaults are the paper's for a first image.

    Attributes:
        num_timesteps: points of the time grid, both ends included: 50 points are 49 updates of the image.
        timestep_shift: s in t -> s*t / (1 + (s-1)*t); more than 1 spends more steps near the noise.
        cfg_text_scale: guidance by the text; it counts only above 1, and without it image guidance does not count.
        cfg_img_scale: guidance by the image that is improved; it counts only above 1.
        cfg_interval: (low, high): guidance acts while low < t <= high.
        cfg_renorm_type: over what the guided velocity is brought back to the unguided one's norm: the whole image
            (``global``), each token (``channel``), or each token before image guidance (``text_channel``).
        cfg_renorm_min: the least factor of that; 1 turns it off.
        solver: of the steps: ``euler`` (the paper's), or a multistep one that needs fewer of them
            (:mod:`irg.engine.solvers`): ``adams`` (Adams-Bashforth), ``dpm`` (DPM-Solver++ 2M) or ``unipc``.
        network_interval: the network runs in every so many-th step; between, velocities are extrapolated
            (:mod:`irg.engine.step_cache`). 1: in all.
        network_gap: in the place of an interval: the network runs where so much of the time from 1 to 0 has passed
            since it ran, so that many short steps cost no more runs than a few long ones. 0: off.
        sde_noise_level: of the stochastic sampler (:func:`irg.engine.flow.stochastic_step`); 0: Euler's method alone.
        sde_window_start: the first stochastic step, from 0.
        sde_window_size: consecutive stochastic steps; all others are Euler's.
        sde_type: how stochastic steps are made: ``sde`` (Flow-GRPO) or ``cps`` (Flow-CPS), which keeps the noise level.

    Raises:
        ValueError: a value is of the wrong type or outside its range; the message names the field.
    """

    num_timesteps: int = 50
    timestep_shift: float = 3.0
    cfg_text_scale: float = 4.0
    cfg_img_scale: float = 1.0
    cfg_interval: tuple[float, float] = (0.4, 1.0)
    cfg_renorm_type: RenormType = "global"
    cfg_renorm_min: float = 0.0
    solver: Solver = "euler"
    network_interval: int = 1
    network_gap: float = 0.0
    sde_noise_level: float = 0.0
    sde_window_start: int = 0
    sde_window_size: int = 2
    sde_type: SdeType = "sde"

    def __post_init__(self) -> None:
        whole(self, "num_timesteps", 2, MAX_TIMESTEPS, "50 grid points are 49 updates")
        number(self, "timestep_shift", 0.0, 1000.0, "3.0 is usual; more than 0", above=True)
        number(self, "cfg_text_scale", 0.0, 1000.0, "4.0 is usual; at most 1 means no guidance")
        number(self, "cfg_img_scale", 0.0, 1000.0, "2.0 is usual when improving; at most 1 means none")
        number(self, "cfg_renorm_min", 0.0, 1.0, "from 0 to 1")
        object.__setattr__(self, "cfg_interval", _interval(self.cfg_interval))
        choice(self, "cfg_renorm_type", get_args(RenormType))
        choice(self, "solver", get_args(Solver))
        whole(self, "network_interval", 1, MAX_TIMESTEPS, "1 runs the network in every step")
        number(self, "network_gap", 0.0, 1.0, "0 is off; 0.1 is about ten runs")
        if self.network_gap and self.network_interval > 1:
            raise ValueError("network_interval and network_gap both say when the network runs: give one of them")
        number(self, "sde_noise_level", 0.0, 10.0, "0 is off; 0.7 and 0.8 are usual in training by reward")
        whole(self, "sde_window_start", 0, MAX_TIMESTEPS)
        whole(self, "sde_window_size", 0, MAX_TIMESTEPS)
        choice(self, "sde_type", get_args(SdeType))
        if self.sde_type == "cps" and self.sde_noise_level > 1:
            raise ValueError(
                f"sde_noise_level must be at most 1 with sde_type cps (all noise is new), got {self.sde_noise_level:g}"
            )

    def is_stochastic(self, step: int) -> bool:
        """Whether an update of the image (from 0) is a stochastic one."""
        if self.sde_type == "cps" and step == self.num_timesteps - 2:
            return False  # it ends at time 0, without noise
        after = step - self.sde_window_start
        return self.sde_noise_level > 0 and 0 <= after < self.sde_window_size

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values (the interval as a list)."""
        return asdict(self) | {"cfg_interval": list(self.cfg_interval)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "DrawSettings":
        """The inverse of :meth:`to_dict`; fields left out keep their defaults.

        Raises:
            ValueError: a field is unknown, mistyped or out of range.
        """
        return build(cls, data)


def whole(owner: object, name: str, low: int, high: int, hint: str = "") -> None:
    """Check that ``owner.name`` is a whole number from ``low`` to ``high``.

    Raises:
        ValueError: it is not.
    """
    value = getattr(owner, name)
    if type(value) is not int or not low <= value <= high:
        note = f" ({hint})" if hint else ""
        raise ValueError(f"{name} must be a whole number from {low} to {high}{note}, got {value!r}")


def number(owner: object, name: str, low: float, high: float, hint: str, above: bool = False) -> None:
    """Check that ``owner.name`` is a finite number from ``low`` (or ``above`` it) to ``high``; an int becomes a float.

    Raises:
        ValueError: it is not.
    """
    value = getattr(owner, name)
    fits = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
    if not fits or (above and value <= low):
        raise ValueError(f"{name} must be a number from {low:g} to {high:g} ({hint}), got {value!r}")
    object.__setattr__(owner, name, float(value))


def choice(owner: object, name: str, options: tuple[str, ...]) -> None:
    """Check that ``owner.name`` is one of ``options``.

    Raises:
        ValueError: it is not.
    """
    value = getattr(owner, name)
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(options)}, got {value!r}{choose(str(value), options)}")


def _interval(value: object) -> tuple[float, float]:
    if isinstance(value, tuple | list) and len(value) == 2:
        low, high = value
        if all(isinstance(end, int | float) for end in value) and 0 <= low <= high <= 1:
            return float(low), float(high)
    raise ValueError(f"cfg_interval must be two numbers with 0 <= low <= high <= 1 (such as 0.4 and 1), got {value!r}")


IMPROVING = DrawSettings(cfg_img_scale=2.0, cfg_interval=(0.0, 1.0), cfg_renorm_type="text_channel")
"""The paper's settings for the images after the first."""
