"""Judges by name."""

import re
from importlib import metadata

import pytest
from PIL import Image

from irg import registry
from irg.critics import CriticError, CriticOptions, Review, Verdict
from irg.evaluation.judges import Answer, JudgeOptions, as_critic, make_judges


def test_every_judge_is_an_entry_point():
    """The built-in ones come in by the same door as a plug-in's, and each has a line of help."""
    assert {"file", "geneval", "hf", "mini", "ocr", "openai", "vqascore"} <= set(registry.names(registry.JUDGES))
    with pytest.raises(ValueError, match="a judge is needed") as caught:
        make_judges([], JudgeOptions())
    for name in registry.names(registry.JUDGES):
        assert re.search(rf"(of|;) {name} \(\S.{{10}}", str(caught.value)), name
    assert "can't be loaded" not in str(caught.value)


def test_the_packages_own_judge_wins_over_a_plugin_of_its_name(monkeypatch):
    plugin = metadata.EntryPoint("ocr", "json:loads", registry.JUDGES)
    monkeypatch.setattr(registry, "entry_points", lambda group: [*metadata.entry_points(group=group), plugin])
    registry._found.cache_clear()
    try:
        assert registry.load(registry.JUDGES, "ocr").__module__ == "irg.evaluation.judges.ocr"
    finally:
        registry._found.cache_clear()


def test_judges_by_name():
    with pytest.raises(ValueError, match="did you mean 'openai'"):
        make_judges(["openia:x"], JudgeOptions())
    with pytest.raises(ValueError, match="hf needs more: hf:MODEL"):
        make_judges(["hf"], JudgeOptions())


def test_a_judge_that_answers_yes_scores_images_of_a_search(fake_judge, monkeypatch):
    answers = iter(
        [Answer(0.75), Answer(0.25), Answer(None, "outage", "no server"), Answer(None, "unreadable", "torn")]
    )
    judge = fake_judge(lambda job: next(answers), kinds=("yes",))
    monkeypatch.setattr(as_critic, "make_judges", lambda specs, options: [judge])
    critic = as_critic.make("hf:some/model", CriticOptions(device="cpu"))
    review = Review("a red cup", Image.new("RGB", (4, 4), (9, 8, 7)))
    assert (critic.name, critic.review(review).result()) == ("judge:hf:some/model", Verdict("", "", True, 0.75))
    verdict = critic.review(review).result()
    assert (verdict.score, verdict.done, verdict.change) == (0.25, False, "show: a red cup")
    assert judge.jobs[0].question.text == 'Does this figure show "a red cup"? Please answer yes or no.'
    for kind, why in (("outage", "no server"), ("bad_answer", "torn")):
        with pytest.raises(CriticError, match=why) as failed:
            critic.review(review).result()
        assert failed.value.kind == kind
    critic.close()


def test_a_judge_of_another_kind_scores_no_images_of_a_search():
    with pytest.raises(ValueError, match=r"the judge 'mini' can't say .* openai, hf and vqascore can"):
        as_critic.make("mini", CriticOptions())
    with pytest.raises(ValueError, match="judge:SPEC"):
        as_critic.make("", CriticOptions())
