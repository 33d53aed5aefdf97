"""Case i_dropout_packing: what is dropped leaves the right gaps, and one image in three roles."""

import re
from collections.abc import Callable, Sequence

from irg.model.weights.checkpoint import LoadedModel
from irg.sequence.layout import lay_out
from irg.sequence.parts import Part, drop_conditions

from .fixture import Case
from .packs import check_packing, images_of, sample_parts, training_samples


def dropped(parts: Sequence[Part], numbers: Sequence[float], probability: float) -> list[Part]:
    """Dropout under recorded random numbers, all of which must be drawn."""
    remaining = iter(numbers)
    kept = drop_conditions(parts, lambda: next(remaining), text=probability, latents=probability, patches=probability)
    assert not list(remaining), "fewer numbers were drawn than the reference draws"
    return kept


def test_forced_dropout(case: Callable[[str], Case], loaded: LoadedModel) -> None:
    """An item is dropped when its number is below the probability, which the folder's ``about`` tells."""
    i, packing = case("i_training"), case("i_dropout_packing")
    probability = float(re.search(r"probability (\d*\.\d+)", packing.about)[1])  # type: ignore[index]
    runs = [name.removesuffix(".random") for name in packing.values if name.endswith(".random")]
    assert runs
    sample = int(re.search(r"sample (\d+)", packing.about)[1])  # type: ignore[index]
    parts = training_samples(i, loaded.config)[sample]
    for run in runs:
        kept = dropped(parts, packing.values[f"{run}.random"], probability)
        layout = lay_out(kept, loaded.config.grammar)
        check_packing(packing, f"{run}.", f"{run}.", [layout], [kept])


def test_one_image_in_three_roles(case: Callable[[str], Case], loaded: LoadedModel) -> None:
    """Plans of their own: target, VAE and ViT of one image. Texts are those of the sample whose lengths fit."""
    i, packing = case("i_training"), case("i_dropout_packing")
    runs = [name.removesuffix(".sequence_plan") for name in packing.values if name.endswith(".sequence_plan")]
    assert runs
    for run in runs:
        plan, lens = (packing.values[f"{run}.{name}"] for name in ("sequence_plan", "split_lens"))
        text_lens = [n - 2 for n, item in zip(lens, plan, strict=True) if item["type"] == "text"]
        first = packing.integers(f"{run}.packed_text_ids")[1:]
        fitting = [t for t in i.values["texts"].values() if [len(ids) for ids in t] == text_lens]
        texts = next(t for t in fitting if t[0] == first[: len(t[0])])
        images = next(p for s in range(len(i.values["texts"])) if "cond" in (p := images_of(i, s)))
        grids = packing.values[f"{run}.patchified_vae_latent_shapes"]
        parts = sample_parts(loaded.config, plan, texts, images, grids)
        check_packing(packing, f"{run}.", f"{run}.", [lay_out(parts, loaded.config.grammar)], [parts])
