"""A model on two devices that are not there: ``python two_devices.py``, a process of its own for ``test_devices.py``.

Fake tensors have a device, shapes and dtypes but no numbers, and refuse to mix devices as real ones do. The devices are
those of an empty Python backend, which can't be taken back once it is registered: hence the process.
"""

import dataclasses
from collections.abc import Callable

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from irg.engine.runner import Runner
from irg.model.network.autoencoder import build_autoencoder
from irg.model.network.config import tiny
from irg.model.network.unified import UnifiedModel
from irg.model.placement.devices import add_device_hooks, device_map
from irg.sequence.parts import Latents, Patches, Text


def placed(where: Callable[[str], torch.device]) -> UnifiedModel:
    """A model with each module on its device."""
    config = tiny(vocab_size=260)
    config = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, num_hidden_layers=3))
    model = UnifiedModel(config)
    for name, module in model.named_modules():
        for leaf, parameter in module._parameters.items():
            if parameter is not None:
                there = torch.empty(parameter.shape, device=where(name))
                module._parameters[leaf] = torch.nn.Parameter(there, requires_grad=False)
    return model.eval()


def walk(model: UnifiedModel) -> None:
    """Every kind of work: text and images prefilled, tokens decoded, velocities of two branches; rows that grow."""
    config, main = model.config, model.device
    runner = Runner(model, build_autoencoder(config.autoencoder), rows=1, slots=4)
    devices = [next(layer.parameters()).device for layer in model.language_model.model.layers]
    context, other = runner.cache.new(), runner.cache.new()
    side = config.latent_patch_size
    latents = torch.zeros(config.autoencoder.z_channels, 2 * side, side)
    patches = torch.zeros(2, config.vit.patch_values)
    runner.extend(
        [(context, [Text((5, 6)), Latents((2, 1), latents), Patches((1, 2), patches)]), (other, [Text((7,))])]
    )
    logits = runner.feed([context, other], [[9], [10]])[:, 0]
    branches = runner.branches([(context, (2, 1)), (other, (2, 1))])
    velocity = branches.velocity(torch.zeros(4, config.latent_values), torch.zeros(1))
    assert [slab.device for slab in runner.cache.keys_SKE] == devices
    assert (logits.device, velocity.device) == (main, main)
    assert logits.shape == (2, 260) and velocity.shape == (4, config.latent_values)


def main() -> None:
    """Walk with the hooks, and see the same walk fail without them."""
    _setup_privateuseone_for_python_backend("pretended")
    one, two = torch.device("pretended:0"), torch.device("pretended:1")
    with FakeTensorMode(allow_non_fake_inputs=True):
        for layers in ([one, one, two], [one, two, one], [two, one, one]):
            model = placed(device_map(layers, one))
            try:
                walk(model)
            except RuntimeError as error:
                assert "device" in str(error)
            else:
                raise AssertionError("fake tensors of two devices were mixed unseen")
            add_device_hooks(model)
            walk(model)
    print("followed")


if __name__ == "__main__":
    main()
