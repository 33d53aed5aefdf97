"""OpenAI-compatible endpoints as teachers and judges: paid for once, paced, and held to a form.

    async with Client(Endpoint(url, model), cache_dir) as client:
        answer = await client.chat([{"role": "user", "content": "Is it red? yes or no"}], check=yes_or_no)

What is promised: an answer that has arrived is on disk before anybody sees it, so whatever kills the process, the same
request is never paid for again; only calls that were in flight may be. Needs the extra ``data`` or ``eval``.
"""

from irg.endpoints.answers import CUT_OFF, refuses, without_monologue
from irg.endpoints.cache import AnswerCache
from irg.endpoints.client import Answer, Client
from irg.endpoints.endpoint import Budget, Endpoint, EndpointError, Unanswered
from irg.endpoints.images import decoded, image_part
from irg.endpoints.offline import OfflineClient, keep_answer

__all__ = [
    "CUT_OFF",
    "Answer",
    "AnswerCache",
    "Budget",
    "Client",
    "Endpoint",
    "EndpointError",
    "OfflineClient",
    "Unanswered",
    "decoded",
    "image_part",
    "keep_answer",
    "refuses",
    "without_monologue",
]
