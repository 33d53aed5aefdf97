"""Jobs as requests of the engine, for callers with a session of their own: a stream of the pipeline, a server.

A job has one candidate, or several where it is a search (:mod:`irg.reasoning.search`); each is a request of the engine.
"""

from dataclasses import dataclass

from irg.engine.engine import Engine, Session
from irg.engine.events import RequestDone, RequestFailed
from irg.engine.request import Request
from irg.model.placement.kv_cache_size import EXPECTED_TEXT_TOKENS, request_slots
from irg.reasoning.events import Failed, Finished, GenerationError
from irg.reasoning.jobs import Jobs
from irg.reasoning.negative_prompt import with_negative_prompt
from irg.reasoning.protocols.base import Job
from irg.reasoning.search import Searching
from irg.reasoning.selectors import selector_of
from irg.results.trajectory import Trajectory


@dataclass(frozen=True)
class Requests:
    """Begins the candidates of jobs and notes how they end."""

    jobs: Jobs
    engine: Engine

    def searching(self, job: Job) -> Searching:
        """The candidates of a job of :meth:`Jobs.make`.

        Raises:
            ValueError: there is no such critic as the one that is to choose, or it lacks something that it needs.
        """
        return Searching(job, selector_of(job, self.jobs.critics, self.engine))

    def begin(self, session: Session, searching: Searching, candidate: int, index: int | None = None) -> Request:
        """Let a candidate run in a session; ``index`` is the number in its events."""
        job = searching.attempts[candidate].job
        program = with_negative_prompt(self.jobs.protocol.program(job), job.settings.negative_prompt)
        program = searching.limited(candidate, program)
        return session.add(program, job.seed, index, turn=len(job.images), expected_slots=self.expected_slots(job))

    def expected_slots(self, job: Job) -> tuple[int, ...]:
        """What a job's rows of the cache will probably need."""
        settings, tokenizer = job.settings, self.engine.tokenizer
        said = (job.system, job.prompt, settings.negative_prompt)
        count = sum(len(tokenizer.encode(text)) + 2 for text in said if text) if tokenizer is not None else 0
        rounds = settings.rounds if settings.mode == "irg" else 0
        text = min(EXPECTED_TEXT_TOKENS, max(settings.max_think_tokens, settings.max_reflect_tokens or 0))
        texts, looks = rounds + (settings.mode != "direct"), rounds + len(job.images)
        return request_slots(self.jobs.config, count, text, texts, looks, job.height, job.width)

    def ended(self, searching: Searching, candidate: int, event: RequestDone | RequestFailed) -> Trajectory | None:
        """Note how a candidate ended, and have its images scored; returns what it drew, None if nothing."""
        if isinstance(event, RequestFailed):
            searching.fail(candidate, event.error)
            return None
        job = searching.attempts[candidate].job
        drawn = None if event.value is None else self.jobs.trajectory(job, event.value)
        searching.end(candidate, drawn)
        return drawn

    @staticmethod
    def result(index: int, searching: Searching) -> Finished | Failed:
        """The last event of the request with this number, all of whose candidates have ended; waits for scores."""
        try:
            return Finished(index, searching.result())
        except Exception as error:
            return Failed(index, GenerationError(index, searching.attempts[0].job.prompt, error))
