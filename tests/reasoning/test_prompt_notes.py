"""What a model can't do with a prompt is said by the plug-in that its profile names, wherever results are shown."""

from dataclasses import replace
from pathlib import Path

import pytest

from irg.engine.engine import Engine
from irg.engine.runner import Runner
from irg.model.weights.checkpoint import LoadedModel
from irg.model.weights.folders import model_folder
from irg.model.weights.profile import Profile, read_profile
from irg.model.weights.tokenizer import TextTokenizer
from irg.reasoning.pipeline import IRGPipeline
from irg.results.trajectory import Trajectory

QUICK = {"mode": "direct", "size": 32, "num_timesteps": 2}


@pytest.mark.usefixtures("own_plugins")
def test_notes_are_kept_and_shown(tiny_loaded: LoadedModel, tiny_tokenizer: TextTokenizer, tmp_path: Path) -> None:
    bundled = read_profile(model_folder("mini"))
    assert bundled is not None and bundled.prompt_notes == "mini"

    def drawn(prompt: str, named: str) -> Trajectory:
        engine = Engine(Runner(tiny_loaded.model, tiny_loaded.autoencoder), tiny_tokenizer)
        return IRGPipeline(engine, replace(Profile("tiny"), prompt_notes=named), "tiny")(prompt, **QUICK).trajectory

    told = drawn("a photo of a cabin", "mini")
    assert told.notes == ["irg-mini does not know: cabin. It leaves such things out or replaces them."]
    told.save(tmp_path / "told")
    assert Trajectory.load(tmp_path / "told").notes == told.notes
    assert told.notes[0] in (tmp_path / "told" / "report.html").read_text()
    for prompt, named in (("a photo of a cat", "mini"), ("a cabin", ""), ("a cabin", "of-no-installed-package")):
        silent = drawn(prompt, named)
        assert silent.notes == [] and "notes" not in silent.to_dict()
        silent.save(tmp_path / "silent", overwrite=True)
        assert Trajectory.load(tmp_path / "silent").notes == []
