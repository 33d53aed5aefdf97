"""Critics by name: ``endpoint:MODEL``, ``hf:MODEL``, or a plug-in's name.

Every critic is an entry point of the group ``irg.critics``, the built-in ones too: ``make(rest, options) -> Critic``,
where ``rest`` is what follows the colon. The first line of the function's docstring is its help. A critic's module is
imported when it is named.
"""

from dataclasses import dataclass

from irg import registry
from irg.critics.base import Critic
from irg.endpoints import EndpointOptions
from irg.recipes import choose

SELF = "self"
"""The model itself reflects; there is no critic."""
SELF_CHECK = "self-check"
"""The model itself is asked whether what it planned, and what it says that it sees, is right."""


@dataclass(frozen=True)
class CriticOptions(EndpointOptions):
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

    timeout_s: float = 120.0
    attempts: int = 4
    longest_wait_s: float = 30.0
    max_tokens: int = 2048
    budget: float | None = None
    cache_dir: str | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
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
