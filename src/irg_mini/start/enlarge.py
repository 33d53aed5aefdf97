"""A trained small model carried over to larger images and more words, so that training goes on and does not begin.

``python -m irg_mini.start.enlarge --model DIR --out DIR --size 128 [--vocab geneval --words 2048] [--vit DIR]``

What is kept: every weight of the network. What is made anew: the tokenizer, if asked for (a token that the old one had
keeps its embedding, another begins as the mean of the old tokens that spell it), and the table of places in an image,
which is interpolated: a token of the larger image gets the features of the same place in the smaller one. A new ViT
gets a connector that maps each patch to the words for what it holds (:mod:`irg_mini.start.connector`).
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

from irg.model.network.config import ModelConfig
from irg.model.network.embeddings import sincos_rows
from irg.model.network.unified import UnifiedModel
from irg.model.weights.checkpoint import load_model, save_model
from irg.model.weights.profile import Profile, read_profile
from irg.model.weights.tokenizer import TextTokenizer
from irg.sequence.images import ResizeRule
from irg_mini import world
from irg_mini.perception.autoencoder import reconstruction
from irg_mini.perception.labeled_images import Pool, Reconstruct
from irg_mini.start.base_model import example_texts, train_tokenizer
from irg_mini.start.connector import fit_connector


@dataclass(frozen=True)
class Enlargement:
    """The model to begin with, and what it becomes."""

    model: str
    out: str
    size: int = 128
    """Side of the images that will be drawn, in pixels."""
    vocab: str = "geneval"
    words: int | None = None
    """Tokens of a new vocabulary; default: the model keeps its own."""
    vit: str | None = None
    """A folder with a pre-trained ViT to put in (model.safetensors)."""
    images: int = 3000
    """Rendered images that a new ViT's connector is fitted on."""
    sprites: Literal["fluent", "builtin"] = "fluent"
    max_think_tokens: int = 320
    seed: int = 0

    def __post_init__(self) -> None:
        if self.images < 10:
            raise ValueError(f"images must be at least 10, got {self.images}")


def interpolated_places(side: int, old: int, hidden: int) -> Tensor:
    """Position features of a ``side`` x ``side`` image in the terms of one of ``old`` tokens a side, [side^2, C]."""
    index = torch.arange(side * side)
    places = [(axis + 0.5) * (old / side) - 0.5 for axis in (index % side, index // side)]
    return sincos_rows(places[0], places[1], hidden)


def resized_vocabulary(rows_VC: Tensor, old: TextTokenizer, new: TextTokenizer) -> Tensor:
    """One row for each token of the new vocabulary: the old row of that very token, or the mean of those that spell
    it."""
    size = new.tokenizer.get_vocab_size()
    out_VC = rows_VC.mean(dim=0).repeat(size, 1)
    known = old.tokenizer.get_vocab()
    for token, number in new.tokenizer.get_vocab().items():
        if token in known:
            out_VC[number] = rows_VC[known[token]]
        elif spelled := old.encode(new.decode([number])):
            out_VC[number] = rows_VC[list(spelled)].mean(dim=0)
    return out_VC


@torch.no_grad()
def enlarge(options: Enlargement) -> Path:
    """Write the enlarged model folder.

    Raises:
        ValueError: there is no such model, or ``size`` is no multiple of its stride or beyond its table of places, or
            the sprites that a new ViT's connector needs are missing.
    """
    folder, out = Path(options.model), Path(options.out)
    loaded = load_model(folder, dtype=torch.float32)
    before, profile = loaded.config, read_profile(folder)
    if profile is None or "width" not in profile.settings:
        raise ValueError(f"{folder}: its irg.json has no size of its images")
    if options.size % before.image_stride or options.size > before.max_image_size:
        raise ValueError(
            f"size {options.size} must be a multiple of {before.image_stride} and at most {before.max_image_size}"
        )
    old = TextTokenizer.from_file(folder / "tokenizer.json")
    new = train_tokenizer(options.seed, vocabulary=options.words, vocab=options.vocab) if options.words else old
    config = _config(before, options, new)
    model = UnifiedModel(config)
    state = loaded.model.state_dict()
    for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        state[name] = resized_vocabulary(state[name], old, new)
    side, was = options.size // config.image_stride, int(profile.settings["width"]) // config.image_stride
    if side != was:  # an interpolated table stays as it is
        places = interpolated_places(side, was, config.decoder.hidden_size)
        table = state["latent_pos_embed.pos_embed"].clone().view(config.max_latent_size, config.max_latent_size, -1)
        table[:side, :side] = places.view(side, side, -1)
        state["latent_pos_embed.pos_embed"] = table.flatten(0, 1)
    model.load_state_dict(state)
    if options.vit is not None:
        _set_vit(model, Path(options.vit), new, reconstruction(loaded.autoencoder), options)
    save_model(out, config, model, loaded.autoencoder)
    new.tokenizer.save(str(out / "tokenizer.json"))
    _profile(profile, options).save(out)
    return out


def _set_vit(
    model: UnifiedModel, vit: Path, words: TextTokenizer, reconstruct: Reconstruct, options: Enlargement
) -> None:
    """A new ViT, and a connector fitted to it."""
    model.vit_model.load_state_dict(load_file(vit / "model.safetensors"))
    sprites = world.load_sprites(options.sprites)
    known = [name for name in world.classes(options.vocab) if name in sprites.images]
    size = model.config.vit.image_size
    pool = Pool(
        options.images,
        77,
        size,
        unrecognizable_share=0.1,
        degraded_share=0.1,
        reconstruct=reconstruct,
        sprites=sprites,
        vocab=known,
    )
    named = fit_connector(model, words, options.vocab, pool)
    print(f"The connector names the places of {100 * named:.0f} % of things in images it was not fitted on.")


def _config(before: ModelConfig, options: Enlargement, tokenizer: TextTokenizer) -> ModelConfig:
    return replace(
        before,
        decoder=replace(before.decoder, vocab_size=tokenizer.tokenizer.get_vocab_size()),
        special=tokenizer.special,
        vae_resize=ResizeRule(options.size, options.size, before.image_stride),
    )


def _profile(profile: Profile, options: Enlargement) -> Profile:
    changed = {"height": options.size, "width": options.size, "max_think_tokens": options.max_think_tokens}
    return replace(profile, settings=profile.settings | changed, draft_texts=example_texts(options.vocab))


if __name__ == "__main__":
    import tyro

    print(f"model to train from: {enlarge(tyro.cli(Enlargement))}")
