"""Fine-tuning of the decoder alone, on latents that a model drew."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from irg.model.network.autoencoder import CompactAutoencoder, CompactConfig
from irg.reasoning.pipeline import IRGPipeline
from irg_mini.perception import decoder
from irg_mini.perception.decoder import DecoderConfig, DecoderTraining, Pools, draw_pairs, pairs
from irg_mini.world.sprites import Sprites


@pytest.fixture
def config(tmp_path: Path) -> DecoderConfig:
    return DecoderConfig(
        out=tmp_path / "decoder", steps=200, batch=4, pool=8, size=32, drawn=3, held_out=1, warmup=0, sprites="builtin"
    )


@pytest.fixture
def pools() -> Pools:
    """Latents and plans that have nothing to do with each other, of which a few can be learned by heart."""
    rng = np.random.default_rng(0)
    plans = np.repeat(np.repeat(rng.integers(256, size=(8, 4, 4, 3), dtype=np.uint8), 8, axis=1), 8, axis=2)
    return Pools(rng.normal(size=(8, 12, 4, 4)).astype(np.float16), plans, plans)


def training(config: DecoderConfig, pools: Pools) -> DecoderTraining:
    torch.manual_seed(0)
    return DecoderTraining(config, CompactAutoencoder(CompactConfig()), pools)


def test_only_the_decoder_learns(config: DecoderConfig, pools: Pools) -> None:
    run = training(replace(config, muon_lr=0.02, adam_lr=2e-3), pools)
    before = {name: value.clone() for name, value in run.autoencoder.state_dict().items()}
    losses = [run.train_step(pools) for _ in range(12)]
    assert losses[-1]["total"] < 0.9 * losses[0]["total"] and losses[-1]["features"] > 0
    run.save()
    after = load_file(config.out / "ae.safetensors")
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder"} and after.keys() == before.keys()


def test_a_resumed_run_equals_an_uninterrupted_one(config: DecoderConfig, pools: Pools) -> None:
    whole, part = training(config, pools), training(replace(config, out=config.out / "part"), pools)
    for run in (whole, part):
        run.train_step(pools)
    part.save()
    again = training(part.config, pools)
    assert again.load()
    assert whole.train_step(pools) == again.train_step(pools)


@pytest.mark.gpu
def test_the_decoder_trains_on_a_gpu(config: DecoderConfig, pools: Pools) -> None:
    on_cpu = training(config, pools)
    on_gpu = DecoderTraining(config, training(config, pools).autoencoder.cuda(), pools)
    assert on_gpu.train_step(pools)["total"] == pytest.approx(on_cpu.train_step(pools)["total"], rel=0.01)
    assert on_gpu.validate() == pytest.approx(on_cpu.validate(), abs=0.1)


def test_the_models_drawings_of_plans(config: DecoderConfig, sprites: Sprites) -> None:
    pipe = IRGPipeline.from_pretrained("mini", dtype=torch.float32)
    config = replace(config, size=128, vocab=tuple(sprites.names))
    latents, renderings = draw_pairs(pipe, config, [0, 1])
    assert latents.shape == (2, 12, 16, 16) and renderings.shape == (2, 128, 128, 3)
    image = pipe.engine.runner.decode_latents(torch.from_numpy(latents).float())
    error = (image.clamp(-1, 1) + 1) * 127.5 - torch.from_numpy(renderings).permute(0, 3, 1, 2)
    assert error.abs().mean() < 40  # the pairs belong together: levels of 255


def test_pairs_of_an_earlier_start_are_read(config: DecoderConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def draw(_: object, config: DecoderConfig, numbers: range) -> tuple[np.ndarray, np.ndarray]:
        asked.append(numbers)
        return np.array(numbers, np.float16), np.array(numbers, np.uint8)

    monkeypatch.setattr(decoder, "draw_pairs", draw)
    monkeypatch.setattr(decoder, "PAIRS_A_FILE", 2)
    assert pairs(None, config)[1].tolist() == [0, 1, 2]  # type: ignore[arg-type]
    assert pairs(None, replace(config, drawn=5))[1].tolist() == [0, 1, 2, 3, 4]  # type: ignore[arg-type]
    assert asked == [range(2), range(2, 3), range(2, 4), range(4, 5)]


def test_mistakes(config: DecoderConfig) -> None:
    with pytest.raises(ValueError, match="held_out must be from 1 to drawn - 1"):
        replace(config, held_out=3)
    with pytest.raises(ValueError, match="drawn_share"):
        replace(config, drawn_share=1.5)
