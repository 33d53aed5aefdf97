"""Cases c and d: texts and images put into contexts."""

from collections.abc import Callable

import pytest
import torch

from irg.engine.runner import Runner
from irg.model.weights.checkpoint import LoadedModel
from irg.sequence.parts import Text

from .fixture import (
    Case,
    close,
    crop_apart,
    equal,
    latent_grid,
    latents_of,
    numbered,
    pad_together,
    patches_of,
    read_image,
    sub_cases,
)
from .runs import check_contexts, extend, ids_in, restore, texts_of


@pytest.fixture
def runner(loaded: LoadedModel) -> Runner:
    """A runner whose cache has to grow."""
    return Runner(loaded.model, loaded.autoencoder, rows=1, slots=4)


def test_texts(case: Callable[[str], Case], runner: Runner) -> None:
    """A prefill named ``x_more`` goes on where ``x`` ended."""
    c = case("c_text_prefill")
    contexts = {}
    for name in sub_cases(c, "hidden"):
        texts = texts_of(c, name, runner.grammar.special)
        before = contexts.pop(name.removesuffix("_more"), None) or [runner.cache.new() for _ in texts]
        extend(runner, c, name, before, [[text] for text in texts])
        contexts[name] = before
    assert runner.cache.rows_in_use == sum(len(group) for group in contexts.values())


def test_one_image(case: Callable[[str], Case], loaded: LoadedModel, runner: Runner) -> None:
    d, config = case("d_image_prefill"), loaded.config
    prefix = runner.cache.new()
    runner.extend([(prefix, [Text(ids_in(d.what("prefix.k"))[0])])])
    check_contexts(runner, [prefix], d.context("prefix"), "prefix")

    image = read_image(d, "image_u8")
    latent = runner.read_latents(config.vae_resize(image)[None], d["vae.eps"])
    close(latent, d["vae.latent"], "vae.latent")
    latents, patches = latents_of(config, latent[0]), patches_of(config, image)
    seen = runner.cache.fork(prefix)
    extend(runner, d, "vit", [seen], [[patches]])
    both = runner.cache.fork(prefix)
    extend(runner, d, "vae", [both], [[latents]])
    extend(runner, d, "vae_vit", [both], [[patches]])
    extend(runner, d, "vae_vit_text", [both], [texts_of(d, "vae_vit_text", runner.grammar.special)])
    check_contexts(runner, [prefix], d.context("prefix"), "prefix after its forks went on")

    at_once = runner.cache.fork(prefix)
    runner.extend([(at_once, [latents, patches, *texts_of(d, "vae_vit_text", runner.grammar.special)])])
    check_contexts(runner, [at_once], d.context("vae_vit_text"), "all in one forward")


def test_two_images(case: Callable[[str], Case], loaded: LoadedModel, runner: Runner) -> None:
    """Two samples with an image each; the prefix is what the recorded caches hold before the images."""
    d, config = case("d_image_prefill"), loaded.config
    images = [read_image(d, f"batch.image{i}_u8") for i, _ in enumerate(numbered(d, "batch.image{}_u8"))]
    lens = d.integers("batch.vae.in.key_values_lens")
    after = d.context("batch.vae")
    contexts = [
        restore(runner, *(kv[:, :n] for kv in after.of(i)), position=after.positions[i] - 1) for i, n in enumerate(lens)
    ]
    pixels = [config.vae_resize(image) for image in images]
    padded = pad_together(pixels)
    close(padded, d["batch.vae.in.padded_images"], "batch.vae.in.padded_images", atol=1e-6)
    encoded = runner.read_latents(padded, d["batch.vae.eps"])
    close(encoded, d["batch.vae.latent"], "batch.vae.latent")
    grids = [latent_grid(config, *p.shape[1:]) for p in pixels]
    equal(grids, d.values["batch.vae.in.patchified_vae_latent_shapes"], "latent grids")
    latents = [latents_of(config, z) for z in crop_apart(encoded, grids, config.latent_patch_size)]
    extend(runner, d, "batch.vae", contexts, [[part] for part in latents])
    extend(runner, d, "batch.vit", contexts, [[patches_of(config, image)] for image in images])


@torch.inference_mode()
def test_a_part_may_be_read_token_by_token(case: Callable[[str], Case], runner: Runner) -> None:
    """Feeding a text's tokens one by one leaves what a prefill leaves."""
    c = case("c_text_prefill")
    name = sub_cases(c, "hidden")[0]
    context, wrapped = runner.cache.new(), c.integers(f"{name}.in.packed_text_ids")
    logits = [runner.feed([context], [[token]])[:, 0] for token in wrapped]
    close(torch.cat(logits), c[f"{name}.logits"], f"{name}.logits")
    check_contexts(runner, [context], c.context(name), name)
