"""Judges by name."""

import re
from importlib import metadata

import pytest

from irg import registry
from irg.evaluation.judges import JudgeOptions, make_judges


def test_every_judge_is_an_entry_point():
    """The built-in ones come in by the same door as a plug-in's, and each has a line of help."""
    assert {"file", "geneval", "hf", "mini", "ocr", "openai", "vqascore"} <= set(registry.names(registry.JUDGES))
    with pytest.raises(ValueError, match="a judge is needed") as caught:
        make_judges([], JudgeOptions())
    for name in registry.names(registry.JUDGES):
        assert re.search(rf"\n  {name} +\S.{{10}}", str(caught.value)), name
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
