"""OpenAI-compatible endpoints as teachers and judges: paid for once, paced, and held to a form.

    async with Client(Endpoint(url, model), cache_dir) as client:
        answer = await client.chat([{"role": "user", "content": "Is it red? yes or no"}], check=yes_or_no)

What is promised: an answer that has arrived is on disk before anybody sees it, so whatever kills the process, the same
request is never paid for again; only calls that were in flight may be. Needs the extra ``data`` or ``eval``.
"""

from irg.endpoints.answers import CUT_OFF, refuses, without_monologue
from irg.endpoints.budget import Budget
from irg.endpoints.cache import AnswerCache
from irg.endpoints.client import Answer, Client
from irg.endpoints.endpoint import Endpoint, EndpointError, Unanswered
from irg.endpoints.images import decoded, image_part
from irg.endpoints.offline import OfflineClient, keep_answer
from irg.endpoints.options import EndpointOptions, answers_folder, json_object

__all__ = [
    "CUT_OFF",
    "Answer",
    "AnswerCache",
    "Budget",
    "Client",
    "Endpoint",
    "EndpointError",
    "EndpointOptions",
    "OfflineClient",
    "Unanswered",
    "answers_folder",
    "decoded",
    "image_part",
    "json_object",
    "keep_answer",
    "refuses",
    "without_monologue",
]
