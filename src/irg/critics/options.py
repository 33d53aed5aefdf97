"""Critics by name: ``endpoint:MODEL``, ``hf:MODEL``, or a plug-in's name.

Every critic is an entry point of the group ``irg.critics``, the built-in ones too: ``make(rest, options) -> Critic``,
where ``rest`` is what follows the colon. The first line of the function's docstring is its help. A critic's module is
imported when it is named.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from irg import registry
from irg.critics.base import Critic
from irg.recipes import choose

SELF = "self"
"""The model itself reflects; there is no critic."""
OPENAI_URL = "https://api.openai.com/v1"


@dataclass(frozen=True)
class CriticOptions:
    """How critics work; most belong to one kind of critic.

    Attributes:
        url: for endpoint: the address of the API.
        api_key_env: for endpoint: the environment variable with the key (default: OPENAI_API_KEY for OpenAI's own
            address, none for others).
        concurrency: for endpoint: calls at once.
        requests_per_minute: for endpoint: at most so many calls.
        timeout_s: for endpoint: of one call.
        attempts: for endpoint: tries of a call while the server is overloaded or broken.
        longest_wait_s: for endpoint: of the growing pauses between tries.
        corrections: how many times an unusable answer is sent back to the model with the complaint.
        max_tokens: the most tokens of an answer; a reasoning model's thinking counts.
        temperature: of the answers.
        price_in: for endpoint: price of a million prompt tokens.
        price_out: for endpoint: price of a million answer tokens.
        budget: for endpoint: the most that this run may spend, in the currency of the prices.
        cache_dir: for endpoint: where answers are kept (default: critic-answers in $IRG_CACHE, else in ~/.cache/irg).
        extra: for endpoint: further fields of a request's body; null leaves out one that is sent otherwise.
        device: for local models (default: cuda if there is one).

    Raises:
        ValueError: a number is out of range.
    """

    url: str = OPENAI_URL
    api_key_env: str | None = None
    concurrency: int = 8
    requests_per_minute: float | None = None
    timeout_s: float = 120.0
    attempts: int = 4
    longest_wait_s: float = 30.0
    corrections: int = 2
    max_tokens: int = 2048
    temperature: float = 0.0
    price_in: float = 0.0
    price_out: float = 0.0
    budget: float | None = None
    cache_dir: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    device: str | None = None

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens of a critic must be at least 1, got {self.max_tokens}")
        if self.temperature < 0:
            raise ValueError(f"temperature of a critic must not be negative, got {self.temperature}")
        if self.corrections < 0:
            raise ValueError(f"corrections of a critic must not be negative, got {self.corrections}")
        if self.budget is not None and not self.budget > 0:
            raise ValueError(f"budget of a critic must be above 0, got {self.budget}")
        if self.budget is not None and not (self.price_in or self.price_out):
            raise ValueError("a critic's budget needs prices to count with: give price_in and price_out")


def make_critic(spec: str, options: CriticOptions | None = None) -> Critic:
    """The critic that ``NAME`` or ``NAME:REST`` says. Close it after use.

    Raises:
        ValueError: there is no such critic, or something that it needs is missing. ``self`` is no critic here.
    """
    if spec == SELF:
        raise ValueError("critic 'self' is the model itself, which needs no critic to be made")
    check_critic(spec)
    name, _, rest = spec.partition(":")
    critic: Critic = registry.load(registry.CRITICS, name)(rest, options or CriticOptions())
    return critic


def check_critic(spec: str) -> None:
    """Check a critic's name before anything is loaded.

    Raises:
        ValueError: nothing of that name is installed.
    """
    name = spec.partition(":")[0]
    known = registry.names(registry.CRITICS)
    if spec != SELF and name not in known:
        raise ValueError(f"no critic {name!r}{choose(name, (SELF, *known))}; there are {SELF}, {', '.join(known)}")


def require_rest(name: str, rest: str, what: str) -> str:
    """``rest``, which a critic can't do without.

    Raises:
        ValueError: it is empty.
    """
    if not rest:
        raise ValueError(f"the critic {name} needs more: {name}:{what}")
    return rest
