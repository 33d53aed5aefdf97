"""Layers on several devices; two of them are pretended, see ``two_devices.py``."""

import copy
import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from irg.engine.runner import Runner
from irg.model.placement.devices import add_device_hooks, device_map, layer_devices
from irg.model.weights.checkpoint import LoadedModel, load_model, save_model
from irg.sequence.parts import Latents, Patches, Text

ONE, TWO = torch.device("cuda:0"), torch.device("cuda:1")


def test_layers_are_shared_in_proportion() -> None:
    assert layer_devices(4, [ONE, TWO], [1.0, 1.0]) == [ONE, ONE, TWO, TWO]
    assert layer_devices(28, [ONE, TWO], [10e9, 30e9]).count(ONE) == 7
    assert layer_devices(3, [ONE], [5.0]) == [ONE] * 3


def test_names_go_where_their_layer_is() -> None:
    where = device_map([ONE, TWO], ONE)
    assert where("language_model.model.layers.1.mlp.up_proj") == TWO
    assert where("language_model.model.layers.0") == where("vae2llm") == where("") == ONE
    assert where("vit_model.vision_model.encoder.layers.1") == ONE


def walk(runner: Runner) -> list[torch.Tensor]:
    """Every kind of work: text and images prefilled, a token decoded, two branches of a velocity."""
    context, other = runner.cache.new(), runner.cache.new()
    config = runner.config
    side = config.latent_patch_size
    latents = torch.zeros(config.autoencoder.z_channels, 2 * side, side)
    patches = torch.zeros(2, config.vit.patch_values)
    runner.extend(
        [(context, [Text((5, 6)), Latents((2, 1), latents), Patches((1, 2), patches)]), (other, [Text((7,))])]
    )
    logits = runner.feed([context, other], [[9], [10]])[:, 0]
    noise = torch.zeros(4, config.latent_values)
    velocity = runner.branches([(context, (2, 1)), (other, (2, 1))]).velocity(noise, torch.zeros(1))
    return [logits, velocity]


def test_hidden_states_and_cache_follow_the_layers() -> None:
    pytest.importorskip("torch.utils.backend_registration", reason="needs torch's Python backends")
    script = Path(__file__).with_name("two_devices.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.stdout == "followed\n", done.stderr


def test_hooks_change_no_number(tiny_loaded: LoadedModel) -> None:
    model = copy.deepcopy(tiny_loaded.model)
    wanted = walk(Runner(tiny_loaded.model, tiny_loaded.autoencoder))
    add_device_hooks(model)
    assert all(torch.equal(a, b) for a, b in zip(walk(Runner(model, tiny_loaded.autoencoder)), wanted, strict=True))


def test_rotary_tables_are_moved_once_a_forward(tiny_loaded: LoadedModel) -> None:
    """All layers of a device get the same pair of tensors, those of the next forward another one."""
    model, seen = copy.deepcopy(tiny_loaded.model), list[object]()
    for layer in model.language_model.model.layers:
        layer.to("meta")
    add_device_hooks(model)
    for layer in model.language_model.model.layers:
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[2]))
    decoder, x_UC = model.language_model.model, torch.zeros(1, model.config.decoder.hidden_size)
    for _ in range(2):
        rope = decoder.rope(torch.zeros(1), torch.float32)
        for layer in decoder.layers:
            layer(x_UC, None, rope, lambda layer, q, k, v: q)
    assert seen[0] is seen[1] and seen[2] is seen[3] and seen[0] is not seen[2]


def test_weights_are_loaded_where_they_belong(tmp_path: Path, tiny_loaded: LoadedModel) -> None:
    save_model(tmp_path, tiny_loaded.config, tiny_loaded.model, tiny_loaded.autoencoder)
    asked: list[str] = []

    def where(name: str) -> torch.device:
        asked.append(name)
        return torch.device("cpu")

    place: Callable[[str], torch.device] = where
    loaded = load_model(tmp_path, device=place)
    assert "language_model.model.layers.1.mlp_moe_gen.up_proj" in asked and "" in asked
    assert dataclasses.asdict(loaded.config) == dataclasses.asdict(tiny_loaded.config)


@pytest.mark.gpu
def test_two_real_devices(tiny_loaded: LoadedModel) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    model = copy.deepcopy(tiny_loaded.model).to(ONE)
    model.language_model.model.layers[1].to(TWO)
    add_device_hooks(model)
    wanted = walk(Runner(tiny_loaded.model, tiny_loaded.autoencoder))
    for got, want in zip(walk(Runner(model, tiny_loaded.autoencoder)), wanted, strict=True):
        torch.testing.assert_close(got.cpu(), want, rtol=1e-3, atol=1e-3)
