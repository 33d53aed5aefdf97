"""Runs: which prompts, which seeds, official layouts, going on after an interruption."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from irg.critics import CriticError, WorkerCritic
from irg.engine.engine import Engine
from irg.engine.runner import Runner
from irg.evaluation import generation, runs
from irg.evaluation.image_folders import LAYOUTS, ImageFile
from irg.model.weights.fingerprint import weights_fingerprint
from irg.model.weights.profile import Profile
from irg.promptsets import BenchPrompt
from irg.reasoning.pipeline import IRGPipeline
from irg.reasoning.protocols.irg import IRG
from irg.reasoning.settings import with_options
from irg.results.trajectory import Trajectory, Turn

QUIET = Console(file=io.StringIO())


def flat(value, size=8):
    return Image.new("RGB", (size, size), (value, value, value))


@pytest.fixture(scope="module")
def pipe(tiny_loaded, tiny_tokenizer):
    engine = Engine(Runner(tiny_loaded.model, tiny_loaded.autoencoder), tiny_tokenizer)
    pipe = IRGPipeline(engine, Profile("tiny", system_prompt="Draw."), "tiny")
    stride = pipe.config.image_stride
    pipe.defaults = with_options(
        pipe.defaults,
        {"height": stride, "width": stride, "max_think_tokens": 3, "num_timesteps": 3, "improve_num_timesteps": 3},
    )
    return pipe


def info_of(prompt_set, pipe, samples=2, mode="irg"):
    return runs.new_run(
        prompt_set,
        prompt_set.prompts,
        samples,
        covered_by=None,
        covered=len(prompt_set),
        model="tiny",
        model_fingerprint="0" * 64,
        model_name="tiny",
        mode=mode,
        settings=with_options(pipe.defaults, {"mode": mode}).to_dict(),
        seed=3,
    )


def test_prompts_are_selected_evenly_from_all_tags():
    prompts = [BenchPrompt(str(i), "x", tag) for i, tag in enumerate("aaaabbc")]
    assert [p.id for p in runs.select_prompts(prompts, 3)] == ["0", "4", "6"]
    assert [p.id for p in runs.select_prompts(prompts, 5)] == ["0", "1", "4", "5", "6"]
    assert len(runs.select_prompts(prompts, 99)) == 7 == len(runs.select_prompts(prompts, None))
    with pytest.raises(ValueError, match="--limit"):
        runs.select_prompts(prompts, 0)


def test_seeds_depend_on_prompt_sample_and_run_only():
    prompt = BenchPrompt("00007", "x", "a")
    seeds = {runs.Sample(prompt, n).seed(base) for n in range(4) for base in range(4)}
    assert len(seeds) == 16 and all(0 <= seed < 2**32 for seed in seeds)
    assert runs.Sample(prompt, 0).seed(0) == runs.Sample(replace(prompt, text="other"), 0).seed(0) == 745082680


@pytest.mark.parametrize(("batch_sizes", "levels"), [((4, 3), 1), ((1, 1), 0)])
def test_a_run_is_drawn_resumed_and_the_same_however_it_was_cut(geneval_prompts, pipe, tmp_path, batch_sizes, levels):
    """Up to rounding, which what is drawn together changes; one by one to the byte."""
    info = info_of(geneval_prompts, pipe)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        runs.open_run(folder, info, resume=False)
    first, then = batch_sizes
    assert generation.draw_missing(whole, info, geneval_prompts.prompts, pipe, first, QUIET) == 6
    assert generation.draw_missing(cut, info, geneval_prompts.prompts[:1], pipe, first, QUIET) == 2
    kept = cut / "images" / "00000" / "samples" / "0000.png"
    written = kept.stat().st_mtime_ns
    runs.open_run(cut, info, resume=True)
    assert generation.draw_missing(cut, info, geneval_prompts.prompts, pipe, then, QUIET) == 4
    assert kept.stat().st_mtime_ns == written
    assert generation.draw_missing(cut, info, geneval_prompts.prompts, pipe, then, QUIET) == 0
    for place in ("images", "turns/1", "turns/2"):
        for one in sorted((whole / place).rglob("*.png")):
            images = [np.asarray(Image.open(path)).astype(int) for path in (one, cut / one.relative_to(whole))]
            assert abs(images[0] - images[1]).max() <= levels, one
    texts = [
        [
            turn["thinking"]
            for path in sorted(run.glob("trajectories/*/*.json"))
            for turn in json.loads(path.read_text())["turns"]
        ]
        for run in (whole, cut)
    ]
    assert texts[0] == texts[1]
    metadata = json.loads((whole / "images" / "00001" / "metadata.jsonl").read_text())
    assert metadata["tag"] == "counting"
    record = json.loads((whole / "trajectories" / "00002" / "1.json").read_text())
    assert record["prompt_id"] == "00002" and len(record["turns"]) == 2 and record["turns"][1]["thinking"] is not None
    # an image whose record is missing was in flight when the run was cut: it is drawn again
    (cut / "trajectories" / "00002" / "1.json").unlink()
    assert [one.number for one in runs.missing_samples(cut, info, geneval_prompts.prompts)] == [1]


def test_an_interruption_keeps_what_is_finished(geneval_prompts, pipe, tmp_path, monkeypatch):
    info = info_of(geneval_prompts, pipe, samples=1, mode="direct")
    runs.open_run(tmp_path / "run", info, resume=False)
    save, saved = generation.save_sample, []

    def save_one_then_stop(*arguments):
        if saved:
            raise KeyboardInterrupt
        saved.append(save(*arguments))

    monkeypatch.setattr(generation, "save_sample", save_one_then_stop)
    with pytest.raises(KeyboardInterrupt):
        generation.draw_missing(tmp_path / "run", info, geneval_prompts.prompts, pipe, 1, QUIET)
    assert len(runs.missing_samples(tmp_path / "run", info, geneval_prompts.prompts)) == 2
    assert not pipe.engine.scheduler.running  # and the engine is free again


def test_an_image_that_fails_stays_missing_and_the_others_are_drawn(geneval_prompts, pipe, tmp_path, monkeypatch):
    info = info_of(geneval_prompts, pipe, samples=1, mode="direct")
    runs.open_run(tmp_path / "run", info, resume=False)
    bad, usual = geneval_prompts.prompts[1], IRG.direct

    def program(self, job):
        if job.prompt == bad.text:
            raise MemoryError("out of memory")
        return (yield from usual(self, job))

    monkeypatch.setattr(IRG, "direct", program)
    console = Console(file=io.StringIO(), width=200)
    assert generation.draw_missing(tmp_path / "run", info, geneval_prompts.prompts, pipe, 3, console) == 2
    assert [one.prompt for one in runs.missing_samples(tmp_path / "run", info, geneval_prompts.prompts)] == [bad]
    assert "image 0 of prompt 00001: request 1" in console.file.getvalue()
    monkeypatch.undo()
    assert generation.draw_missing(tmp_path / "run", info, geneval_prompts.prompts, pipe, 3, console) == 1


def test_a_critic_that_fails_is_told_and_the_image_is_drawn_all_the_same(geneval_prompts, pipe, tmp_path):
    class Broken(WorkerCritic):
        def judge(self, review):
            raise CriticError("budget", "the budget is used up")

    pipe.critics.add("broken", Broken("broken"))
    info = info_of(geneval_prompts, pipe, samples=1)
    info = replace(info, settings=info.settings | {"critic": "broken", "critic_fallback": "keep"})
    runs.open_run(tmp_path / "run", info, resume=False)
    console = Console(file=io.StringIO(), width=200)
    prompts = geneval_prompts.prompts[:1]
    assert generation.draw_missing(tmp_path / "run", info, prompts, pipe, 1, console) == 1
    told = "image 0 of prompt 00000: the critic broken failed (budget: the budget is used up); the image stays as it is"
    assert told in " ".join(console.file.getvalue().split())
    pipe.critics.close()


def test_a_run_is_not_mixed_with_another(geneval_prompts, pipe, tmp_path):
    info = info_of(geneval_prompts, pipe)
    runs.open_run(tmp_path / "run", info, resume=True)
    with pytest.raises(FileExistsError, match="--resume"):
        runs.open_run(tmp_path / "run", info, resume=False)
    with pytest.raises(ValueError, match="seed was 3 and is 4"):
        runs.open_run(tmp_path / "run", replace(info, seed=4), resume=True)
    with pytest.raises(ValueError, match="model_fingerprint"):
        runs.open_run(tmp_path / "run", replace(info, model_fingerprint="1"), resume=True)
    with pytest.raises(ValueError, match='precision was "bf16" and is "int8"'):
        runs.open_run(tmp_path / "exact", replace(info, precision="bf16"), resume=True)
        runs.open_run(tmp_path / "exact", replace(info, precision="int8"), resume=True)
    runs.open_run(tmp_path / "run", replace(info, precision="int8", weights="ema"), resume=True)  # an older record
    # a higher limit goes on with the same run, a lower one is another run
    runs.open_run(tmp_path / "few", replace(info, prompt_ids=info.prompt_ids[:1]), resume=False)
    runs.open_run(tmp_path / "few", info, resume=True)
    assert runs.RunInfo.load(tmp_path / "few").prompt_ids == info.prompt_ids
    with pytest.raises(ValueError, match="prompt_ids"):
        runs.open_run(tmp_path / "few", replace(info, prompt_ids=info.prompt_ids[:1]), resume=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("x")
    with pytest.raises(FileExistsError, match="contains no run"):
        runs.open_run(tmp_path / "other", info, resume=False)
    (tmp_path / "run" / "run.json").write_text("{}")
    with pytest.raises(ValueError, match=r"run\.json: not the record"):
        runs.RunInfo.load(tmp_path / "run")


def test_samples_must_fit_the_layout(geneval_prompts, pipe):
    with pytest.raises(ValueError, match="one image a prompt, got --num-images 2"):
        info_of(replace(geneval_prompts, name="wise"), pipe, samples=2)
    with pytest.raises(ValueError, match="1 to 4"):
        info_of(replace(geneval_prompts, name="oneig"), pipe, samples=5)


def test_after_an_early_stop_the_last_image_stands(geneval_prompts, pipe, tmp_path):
    info = info_of(geneval_prompts, pipe, samples=1)
    trajectory = Trajectory("x", "irg", 0, "tiny", {}, [Turn("t", flat(7)), Turn("all is right", None)], stopped=True)
    generation.save_sample(tmp_path, info, runs.Sample(geneval_prompts.prompts[0], 0), trajectory)
    for place in ("images", "turns/1", "turns/2"):
        assert ImageFile(tmp_path / place / "00000/samples/0000.png").pixels().getpixel((0, 0)) == (7, 7, 7)


PROMPT = BenchPrompt("x", "a cat", "color+2d", {"length": "short", "line": 3, "number": "012"})


@pytest.mark.parametrize(
    ("name", "prompt", "place"),
    [
        ("geneval", BenchPrompt("00012", "", ""), "00012/samples/0002.png"),
        ("wise", BenchPrompt("401", "", "time"), "401.png"),
        ("tiif", PROMPT, "color+2d/m/short_description/3.png"),
        ("genai_bench", BenchPrompt("00005", "", ""), "00005.jpeg"),
        ("oneig", replace(PROMPT, tag="anime"), "anime/m/012.webp"),
    ],
)
def test_official_places(name, prompt, place):
    assert LAYOUTS[name].place(prompt, 2, "m") == place


@pytest.mark.parametrize("name", ["0001.png", "00001.png", "1.png", "0001.jpg"])
def test_geneval_images_of_other_generators_are_found(tmp_path, name):
    """The official, BAGEL's and IRG's generators write five digits; the official evaluator takes any number of them."""
    path = tmp_path / "00012/samples" / name
    path.parent.mkdir(parents=True)
    flat(7).save(path)
    find = LAYOUTS["geneval"].find
    assert find(tmp_path, BenchPrompt("00012", "", ""), 1, "m").path == path
    assert find(tmp_path, BenchPrompt("00012", "", ""), 0, "m") is None


def test_other_extensions_are_found(tmp_path):
    flat(7).save(tmp_path / "00005.png")
    assert LAYOUTS["genai_bench"].find(tmp_path, BenchPrompt("00005", "", ""), 0, "m").path.name == "00005.png"


def test_layouts_that_name_the_model():
    assert [name for name, layout in LAYOUTS.items() if layout.names_model] == ["tiif", "oneig"]


def test_a_grid_holds_four_and_black_is_missing(tmp_path):
    layout, prompt = LAYOUTS["oneig"], replace(PROMPT, tag="anime")
    for sample, value in ((0, 10), (3, 40)):
        layout.write(tmp_path, prompt, sample, "m", flat(value))
    assert Image.open(tmp_path / "anime/m/012.webp").size == (16, 16)
    found = [layout.find(tmp_path, prompt, sample, "m") for sample in range(4)]
    assert [one is not None for one in found] == [True, False, False, True]
    assert found[3].pixels().getpixel((4, 4)) == (40, 40, 40)  # lossless
    assert found[0].sha256 != found[3].sha256
    with pytest.raises(ValueError, match="8x8"):
        layout.write(tmp_path, prompt, 1, "m", flat(1, 4))


def test_one_image_in_the_place_of_a_grid_is_taken_whole(tmp_path):
    layout, prompt = LAYOUTS["oneig"], replace(PROMPT, tag="anime")
    path = layout.write(tmp_path, prompt, 0, "m", flat(10))  # our own run of one image a prompt: three black tiles
    assert layout.find(tmp_path, prompt, 0, "m", samples=1).pixels().size == (8, 8)
    flat(10, 16).save(path)
    assert layout.find(tmp_path, prompt, 0, "m", samples=1).pixels().size == (16, 16)
    assert layout.find(tmp_path, prompt, 0, "m", samples=4).pixels().size == (8, 8)


def test_images_that_are_none(tmp_path):
    assert LAYOUTS["wise"].find(tmp_path, BenchPrompt("1", "", ""), 0, "m") is None
    (tmp_path / "1.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"1\.png: is no image that can be read"):
        LAYOUTS["wise"].find(tmp_path, BenchPrompt("1", "", ""), 0, "m").pixels()


@pytest.mark.parametrize("name", ["model.safetensors", "ema.gguf"])
def test_fingerprint_sees_a_change_at_either_end(tmp_path, name):
    weights = tmp_path / name
    weights.write_bytes(b"a" * (3 << 20))
    before = weights_fingerprint(tmp_path)
    for at in (0, -1):
        content = bytearray(b"a" * (3 << 20))
        content[at] = 98
        weights.write_bytes(content)
        assert weights_fingerprint(tmp_path) != before


def test_names_fit_for_files():
    assert runs.default_folder("geneval", "models/My model (v2)/", "irg") == Path("irg-bench/geneval-My-model-v2-irg")
