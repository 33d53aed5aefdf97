"""Who gives the images of a search a score, later: while a selector is asked, other requests go on."""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from irg.critics import Critic, Review, Verdict
from irg.engine.engine import Engine
from irg.engine.ops import Look, Say
from irg.reasoning.critique import Critics
from irg.reasoning.protocols.base import Job
from irg.reasoning.settings import CRITIC, Settings

_ASKED = 'Does this image show all that is asked for by "{prompt}"? Answer yes or no.'
_ANSWERS = (("yes", "Yes"), ("no", "No"))


@dataclass(frozen=True)
class Selector:
    """Who scores images.

    Attributes:
        name: how results name it.
        score: begins to look at an image and returns at once; the score is 0..1, higher is better.
    """

    name: str
    score: Callable[[Review], "Future[float]"]


def critic_selector(critic: Critic) -> Selector:
    """Scores by a critic's verdicts."""

    def score(review: Review) -> Future[float]:
        found: Future[float] = Future()

        def pass_on(verdict: "Future[Verdict]") -> None:
            try:
                found.set_result(verdict.result().score)
            except BaseException as error:
                found.set_exception(error)

        critic.review(review).add_done_callback(pass_on)
        return found

    return Selector(critic.name, score)


def self_selector(engine: Engine) -> Selector:
    """Scores by the model itself: how likely it answers yes rather than no when it is asked whether the image shows
    what the prompt asks for. The image is read through the ViT; one forward an image, between the engine's turns.

    Raises:
        ValueError: the tokenizer begins both answers with the same token.
    """
    tokenizer = engine.tokenizer
    if tokenizer is None:
        raise ValueError("select 'self' needs a model with a tokenizer")
    yes, no = ({tokenizer.encode(word)[0] for word in words} for words in _ANSWERS)
    if yes & no:
        raise ValueError("select 'self': this model's tokenizer begins 'yes' and 'no' with the same token")

    def score(review: Review) -> Future[float]:
        found: Future[float] = Future()
        try:
            ops = (Look(review.image, vae=False), Say(_ASKED.format(prompt=review.prompt)))
            logits_V = engine.score(ops, ())[0]
            odds = logits_V[sorted(yes)].logsumexp(0) - logits_V[sorted(no)].logsumexp(0)
            found.set_result(float(odds.sigmoid()))
        except Exception as error:
            found.set_exception(error)
        return found

    return Selector("self", score)


def needs_selector(settings: Settings) -> bool:
    """Whether images have to be scored."""
    return settings.keep_best or settings.candidates > 1


def selector_of(job: Job, critics: Critics, engine: Engine) -> Selector | None:
    """Who scores the images of a request; None where nothing is scored.

    Raises:
        ValueError: there is no such critic, or it lacks something that it needs.
    """
    select = job.settings.select
    if not needs_selector(job.settings):
        return None
    critic = job.critic if select == CRITIC else critics.get(select)
    if critic is None and select == CRITIC:
        raise ValueError("select 'critic' needs a critic: give critic with it, or select by the critic's name")
    return self_selector(engine) if critic is None else critic_selector(critic)
