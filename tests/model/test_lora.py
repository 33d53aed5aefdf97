"""Adapters: nothing at first, the same applied as merged, and what is on disk."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from irg.model.network.lora import LoraConfig, LoraLinear, add_adapters
from irg.model.network.packed_attention import PackedAttention
from irg.model.network.token_batch import StreamOrder, token_batch
from irg.model.network.unified import UnifiedModel
from irg.model.weights.adapter_files import merge_adapter, read_adapter, save_adapter
from irg.model.weights.checkpoint import LoadedModel
from irg.sequence.layout import lay_out
from irg.sequence.parts import Latents, Text

CONFIG = LoraConfig(r=4, alpha=8.0, targets=("q_proj", "v_proj", "down_proj"))


def outputs(model: UnifiedModel) -> list[Tensor]:
    layout = lay_out([Text((5, 6, 7)), Latents((2, 2)), Text((8,))], model.config.grammar)
    order = StreamOrder.of([layout])
    latents = torch.randn(4, model.config.latent_values, generator=torch.Generator().manual_seed(1))
    batch = token_batch([layout], order, None, latents, torch.zeros(1))
    with torch.no_grad():
        return [x for x in model(batch, PackedAttention([layout], order)) if x is not None]


@pytest.fixture
def adapted(tiny_loaded: LoadedModel) -> UnifiedModel:
    model = copy.deepcopy(tiny_loaded.model)
    add_adapters(model, CONFIG, seed=1)
    return model


def adapter_of(model: UnifiedModel) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters() if "lora_" in name}


def test_nothing_changes_at_first(tiny_loaded: LoadedModel, adapted: UnifiedModel) -> None:
    wanted = outputs(tiny_loaded.model)
    assert all(torch.equal(a, b) for a, b in zip(wanted, outputs(adapted), strict=True))
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    layers = tiny_loaded.config.decoder.num_hidden_layers
    assert len(trained) == layers * 3 * 2 * 2 and all("lora_" in name for name in trained)  # both experts, A and B
    assert adapted.state_dict().keys() - trained == tiny_loaded.model.state_dict().keys()
    layer = adapted.language_model.model.layers[0].self_attn.q_proj_moe_gen
    assert isinstance(layer, LoraLinear) and layer.lora_A.shape == (4, 32) and layer.lora_B.shape == (32, 4)


def test_merged_is_applied(tiny_loaded: LoadedModel, adapted: UnifiedModel, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for tensor in adapter_of(adapted).values():
            tensor.normal_(0.0, 0.2, generator=generator)
    save_adapter(tmp_path, CONFIG, adapter_of(adapted))
    assert json.loads((tmp_path / "adapter.json").read_text()) == {"r": 4, "alpha": 8.0, "targets": [*CONFIG.targets]}
    read = read_adapter(tmp_path, tiny_loaded.model.state_dict())
    config, tensors = CONFIG, read.tensors()
    assert {layer.scale for layer in read.layers.values()} == {2.0}
    path = "language_model.model.layers.1.mlp_moe_gen.down_proj"
    assert tensors[f"{path}.lora_A"].shape == (4, 64) and tensors[f"{path}.lora_B"].shape == (32, 4)
    weights = dict(tiny_loaded.model.state_dict())
    before = weights[f"{path}.weight"]
    merge_adapter(weights, config, tensors)
    added = 2.0 * tensors[f"{path}.lora_B"] @ tensors[f"{path}.lora_A"]
    assert torch.allclose(weights[f"{path}.weight"], before + added, atol=1e-6)
    merged = UnifiedModel(tiny_loaded.config)
    merged.load_state_dict(weights)
    wanted, got = outputs(adapted), outputs(merged.eval())
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(wanted, got, strict=True))
    assert not torch.allclose(got[0], outputs(tiny_loaded.model)[0], atol=1e-2)


def test_mistakes(adapted: UnifiedModel, tiny_loaded: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no linear layer is called 'qproj'; there are down_proj, gate_proj, k_proj"):
        add_adapters(copy.deepcopy(tiny_loaded.model), LoraConfig(4, 4.0, ("qproj",)))
    with pytest.raises(ValueError, match="holds no adapter: it needs"):
        read_adapter(tmp_path)
    save_adapter(tmp_path, CONFIG, adapter_of(adapted))
    tensors = load_file(tmp_path / "adapter.safetensors")
    with pytest.raises(ValueError, match="changes nothing"):  # never trained: B is 0
        read_adapter(tmp_path)
    name = next(iter(sorted(tensors)))
    save_file({k: v for k, v in tensors.items() if k != name}, tmp_path / "adapter.safetensors")
    with pytest.raises(ValueError, match="is not one of a pair lora_A, lora_B"):
        read_adapter(tmp_path)
    weights = {name: torch.zeros(3, 3) for name in tiny_loaded.model.state_dict()}
    with pytest.raises(ValueError, match="a weight of 3 x 3 at rank 4 needs"):
        merge_adapter(weights, CONFIG, tensors)
