"""What the mini benchmark asks for."""

import json
from pathlib import Path

import pytest

from irg_mini import world
from irg_mini.measure.prompts import TAGS, geneval_requests, held_out_requests


def test_held_out_requests_cover_the_forms_equally_and_were_never_trained_on() -> None:
    requests = held_out_requests(60, seed=0)
    assert {tag: sum(r.tag == tag for r in requests) for tag in TAGS} == dict.fromkeys(TAGS, 10)
    combined = [r for r in requests if r.tag != "single_object"]  # a single object combines nothing
    assert all(world.held_out(r) for r in combined)


def test_genevals_prompts_become_requests(tmp_path: Path) -> None:
    prompts = [
        {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
        {"tag": "single_object", "include": [{"class": "cat", "count": 1}], "prompt": "a photo of a cat"},
        {
            "tag": "counting",
            "include": [{"class": "clock", "count": 2}],
            "exclude": [{"class": "clock", "count": 3}],
            "prompt": "a photo of two clocks",
        },
    ]
    file = tmp_path / "evaluation_metadata.jsonl"
    file.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    found = geneval_requests(0, str(file), ["cat", "clock"])
    assert [(r.tag, r.include[0].name, r.include[0].count) for r in found] == [
        ("single_object", "cat", 1),
        ("counting", "clock", 2),
    ]
    assert len(geneval_requests(1, str(file), ["cat", "clock", "bench"])) == 1
    with pytest.raises(ValueError, match="none of GenEval's prompts"):
        geneval_requests(0, str(file), ["dog"])
