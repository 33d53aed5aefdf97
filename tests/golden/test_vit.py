"""Case b: the ViT, the connector, the decoder's position table, and the conv form of the patch embedding."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from irg.model.network.embeddings import sincos_rows
from irg.model.weights.checkpoint import LoadedModel, load_model
from irg.sequence.layout import cells_of

from .fixture import Case, close, equal, numbered, patches_of, read_image

PATCH_EMBEDDING = "vit_model.vision_model.embeddings.patch_embedding.weight"


def test_images_to_patches(case: Callable[[str], Case], loaded: LoadedModel) -> None:
    b, config = case("b_vit"), loaded.config
    parts = []
    for index, wanted in enumerate(numbered(b, "image{}_x")):
        image = read_image(b, f"image{index}_u8")
        close(config.vit_resize(image), wanted, f"image{index}_x", atol=1e-6)
        parts.append(patches_of(config, image))
    close(torch.cat([part.content for part in parts]), b["patches"], "patches", atol=1e-6)
    equal([part.tokens for part in parts], b["seqlens"], "seqlens")
    side = config.vit_max_num_patch_per_side
    equal(np.concatenate([cells_of(part.grid, side) for part in parts]), b["position_ids"], "position_ids")


@torch.no_grad()
def test_layers(case: Callable[[str], Case], loaded: LoadedModel, device: torch.device) -> None:
    b, model = case("b_vit"), loaded.model
    tower = model.vit_model.vision_model
    seen: dict[str, Tensor] = {}
    watched = {"embeddings": tower.embeddings, "vit_out": model.vit_model, "connector_out": model.connector}
    watched |= {f"layer{i}": layer for i, layer in enumerate(tower.encoder.layers)}

    def watch(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        return module.register_forward_hook(lambda _m, _i, output: seen.update({name: output}))

    handles = [watch(name, module) for name, module in watched.items()]
    try:
        cells, lens = b["position_ids"].to(device), b.integers("seqlens")
        seen["final"] = model.read_patches(b["patches"].to(device), cells, lens)
    finally:
        for handle in handles:
            handle.remove()
    seen["pos_embed"] = model.vit_pos_embed(cells)
    recorded = [name for name in b.names if name.startswith("layer")]
    assert len(recorded) == len(tower.encoder.layers)
    for name, got in seen.items():
        close(got, b[name], name)


def test_tables_are_the_formula(loaded: LoadedModel) -> None:
    for table in (loaded.model.latent_pos_embed, loaded.model.vit_pos_embed):
        index = torch.arange(table.side**2)
        wanted = sincos_rows(index % table.side, index // table.side, table.hidden)
        close(table.pos_embed, wanted, "position table", atol=1e-6)


def test_conv_form(case: Callable[[str], Case], golden: Path, tmp_path: Path) -> None:
    b = case("b_vit")
    weights = load_file(golden / "weights.safetensors")
    weights[PATCH_EMBEDDING] = b["conv_weight"]
    save_file(weights, tmp_path / "weights.safetensors")
    for name in ("config.json", "ae.safetensors"):
        (tmp_path / name).symlink_to((golden / name).resolve())
    got = load_model(tmp_path).model.state_dict()[PATCH_EMBEDDING]
    close(got, b["linear_weight"], "patch embedding", atol=0)
