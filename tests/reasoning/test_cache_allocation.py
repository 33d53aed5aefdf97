"""What a whole request allocates of the key-value cache: once, as many bytes as its sequence has."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from irg.engine.attention import CachedAttention
from irg.engine.cache import KVCache
from irg.engine.runner import Runner
from irg.model.network.config import tiny
from irg.model.network.unified import UnifiedModel
from irg.model.weights.initialize import write_folder
from irg.reasoning.pipeline import IRGPipeline
from irg.sequence.images import ResizeRule


def test_three_rounds_at_1024(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """BAGEL's own sizes of images on a tiny network, whose attention, ViT and autoencoder are left out.

    An image looked at has 64^2 latent and 70^2 patch tokens, and two around each; one drawn the former. There are
    three rows: the main one, the text-free one without the last text, the image-free one without what was looked at.
    """
    config = replace(
        tiny(),
        vit=replace(tiny().vit, image_size=980),
        max_latent_size=64,
        vit_max_num_patch_per_side=70,
        vae_resize=ResizeRule(1024, 512, 16),
        vit_resize=ResizeRule(980, 224, 14),
    )
    write_folder(tmp_path, config)
    pipe = IRGPipeline.from_pretrained(tmp_path, device="cpu", memory="auto")
    hidden, z = config.decoder.hidden_size, config.autoencoder.z_channels
    monkeypatch.setattr(CachedAttention, "_attend", lambda self, call, layer, q_NHE: torch.zeros_like(q_NHE))
    monkeypatch.setattr(UnifiedModel, "read_patches", lambda self, x, *rest: torch.zeros(len(x), hidden))
    monkeypatch.setattr(Runner, "read_latents", lambda self, x, eps=None: torch.zeros(len(x), z, 128, 128))
    monkeypatch.setattr(Runner, "decode_latents", lambda self, x: torch.zeros(len(x), 3, 1024, 1024))
    made, slab = list[int](), KVCache._slab

    def counted(self: KVCache, slots: int, device: Any) -> Any:
        new = slab(self, slots, device)
        made.append(new.nbytes)
        return new

    monkeypatch.setattr(KVCache, "_slab", counted)
    drawing = {"num_timesteps": 3, "improve_num_timesteps": 3, "improve_cfg_img_scale": 2.0}
    size = {"height": 1024, "width": 1024, "max_think_tokens": 4, "temperature": 0.0}
    out = pipe("three red apples", seed=1, mode="irg", rounds=3, stop_when_done=False, **size, **drawing)
    assert len(out.trajectory.turns) == 4
    cache = pipe.engine.runner.cache
    said = sum(len(pipe.engine.tokenizer.encode(text)) + 2 for text in ("three red apples", pipe.profile.system_prompt))
    seen, drawn = 3 * (64 * 64 + 2 + 70 * 70 + 2), 64 * 64 + 2
    slots = said + 4 * (4 + 2) + seen + drawn
    assert cache.shape == ((1, slots), (1, slots - 6), (1, slots - seen))
    assert made == [(3 * slots - 6 - seen) * 2 * 8 * 4] * 2 * 2  # heads, their size, float32; keys and values, 2 layers
