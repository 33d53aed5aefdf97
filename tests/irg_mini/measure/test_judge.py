"""The bundled detector as a judge."""

import numpy as np
import pytest
from PIL import Image

from irg import promptsets
from irg.evaluation.benchmarks.base import Question
from irg.evaluation.image_folders import ImageFile
from irg.evaluation.judges import Job
from irg_mini import world
from irg_mini.measure.judge import MiniJudge


def test_mini_judge_sees_what_the_world_renders(tmp_path):
    try:
        world.load_sprites("fluent")
    except ValueError as error:
        pytest.skip(str(error))  # the judge has never seen the built-in sprites
    request = world.make_request([world.Include("cat", color="red")])
    scene = world.sample_scene(request, np.random.default_rng(0))
    Image.fromarray(world.render(scene)).save(tmp_path / "cat.png")
    judge = MiniJudge()
    prompt = promptsets.BenchPrompt("0", "x", "colors", request.to_json())
    ((_, answer),) = judge.answers([Job(prompt, 0, 1, ImageFile(tmp_path / "cat.png"), Question("detect", "objects"))])
    assert max(box[4] for box in answer.raw["boxes"]["cat"]) > 0.3


def test_mini_judge_tells_its_weights_and_what_it_covers():
    judge = MiniJudge()
    assert judge.identity()["weights_sha256"] == MiniJudge().identity()["weights_sha256"]
    known = promptsets.BenchPrompt("0", "x", "single_object", {"include": [{"class": "cat", "count": 1}]})
    unknown = promptsets.BenchPrompt("0", "x", "single_object", {"include": [{"class": "dragon", "count": 1}]})
    assert judge.covers(known) and not judge.covers(unknown)
