"""A model behind an address as a reward, on a local server."""

from pathlib import Path
from typing import Any

import pytest
from faulty_server import FaultyServer
from PIL import Image

from irg import recipes
from irg.learning.rl.endpoint_judge import EndpointReward
from irg.learning.rl.prompts import Prompt
from irg.learning.rl.rewards import Score
from irg.results.trajectory import Trajectory, Turn

pytest.importorskip("openai")


def said(text: str, image: Image.Image | None = None) -> Trajectory:
    turns = [Turn(text, None)] if image is None else [Turn("plan", image, given=True), Turn(text, None)]
    return Trajectory("a dog", "think", 0, "tiny", {}, turns)


def reply(path: str, body: dict[str, Any]) -> str:
    """The longer the text, the better; ``odd`` gets no number until it is asked again, ``never`` gets none."""
    content = body["messages"][0]["content"]
    text = content[-1]["text"]
    if "never" in text or ("odd" in text and len(body["messages"]) == 1):
        return "It is fine."
    return f"Nothing is missing.\n{min(10, text.count('x'))}" if len(content) == 1 else "Seen.\n**10/10**"


def test_numbers_become_scores_once_paid_for(tmp_path: Path) -> None:
    with FaultyServer(reply) as server:
        options = {"url": server.url, "model": "judge", "cache_dir": str(tmp_path), "question": "{prompt}: {text}"}
        reward = recipes.build(EndpointReward, options)
        prompts = [Prompt("a dog")] * 4
        scores = reward.scores(
            prompts, [said("xxx"), said("xx odd"), said("never"), said("", Image.new("RGB", (8, 8)))]
        )
        values = [score.value if isinstance(score, Score) else None for score in scores]
        assert values == [0.3, 0.2, None, 1.0]
        assert isinstance(scores[0], Score) and scores[0].reasons == "Nothing is missing.\n3"
        assert "number from 0 to 10" in str(scores[2])
        asked = len(server.bodies)
        assert reward(prompts[0], said("xxx")).value == 0.3 and len(server.bodies) == asked
        with pytest.raises(Exception, match="number from 0 to 10"):
            reward(prompts[0], said("never"))


def test_the_question_says_what_is_judged(tmp_path: Path) -> None:
    with FaultyServer(reply) as server:
        reward = EndpointReward(server.url, "judge", cache_dir=str(tmp_path))
        reward(Prompt("a dog on a couch"), said("Scene: x."))
        reward(Prompt("a dog"), said("it is a cat", Image.new("RGB", (8, 8))))
        drawn = Trajectory("a cow", "think", 0, "tiny", {}, [Turn("plan", Image.new("RGB", (8, 8), "red"))])
        priced = EndpointReward(server.url, "judge", cache_dir=str(tmp_path), price_per_million_in=1e6)
        assert priced(Prompt("a cow"), drawn).parts["cost"] > 0
        first, second, third = (body["messages"][0]["content"] for body in server.bodies)
    assert "asked for: a dog on a couch" in first[0]["text"] and "this plan:\nScene: x." in first[0]["text"]
    assert "How well does the image show" in third[1]["text"] and "asked for: a cow" in third[1]["text"]
    assert second[0]["type"] == "image_url" and "wrote:\nit is a cat" in second[1]["text"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"url": "localhost"}, "url must begin with http"),
        ({"scale": 0}, "scale must be above 0"),
        ({"question": "{prompt} {image}"}, r"only \{prompt\} and \{text\}"),
        ({"modle": "x"}, r"modle: unknown field \(did you mean 'model'"),
    ],
)
def test_options_are_checked(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipes.build(EndpointReward, {"url": "http://localhost:1/v1", "model": "judge"} | change)
