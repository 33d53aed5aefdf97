"""The starting point of irg-mini: its tokenizer, and a model folder with fresh weights around the trained encoders.

``python -m irg_mini.start.base_model --autoencoder DIR --vit DIR --out DIR`` puts a folder together that
``irg train`` starts from.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from irg.model.network.autoencoder import build_autoencoder
from irg.model.network.config import ModelConfig, mini
from irg.model.weights.checkpoint import save_model
from irg.model.weights.profile import Profile
from irg.model.weights.tokenizer import SPECIAL_NAMES, TextTokenizer
from irg_mini import world
from irg_mini.start.initialize import fresh_model

PLACE = re.compile(r" ?\((\d+),(\d+)\)")
PROFILE = Profile(
    name="irg-mini",
    system_prompt="Think, then draw.",
    how_to_think="How should one think to draw this?",
    how_to_improve="How should the first picture be improved to become the second?",
    settings={
        "height": 96,
        "width": 96,
        "max_think_tokens": 220,
        "temperature": 0.3,
        "initial": {"num_timesteps": 21, "timestep_shift": 1.6, "cfg_text_scale": 3.0, "cfg_interval": [0.0, 1.0]},
        "improving": {
            "num_timesteps": 21,
            "timestep_shift": 1.6,
            "cfg_text_scale": 3.0,
            "cfg_img_scale": 1.0,
            "cfg_interval": [0.0, 1.0],
        },
    },
)


def train_tokenizer(seed: int = 0, texts: int = 20_000, vocabulary: int = 1024, vocab: str = "core") -> TextTokenizer:
    """Byte-level BPE on the mini world's texts: any Unicode text can be written, the world's words are one token each
    (those of a large ``vocab`` only as far as ``vocabulary`` tokens go), and so is every place of the 12 x 12 grid,
    "(3,7)"."""
    tokenizer = Tokenizer(models.BPE())
    places = [f"({col},{row})" for row in range(world.GRID) for col in range(world.GRID)]
    pieces = Regex(r" ?\(\d+,\d+\)| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]|\s")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pieces, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_NAMES),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    corpus = world.sample_texts(np.random.default_rng(seed), texts, vocab)
    fixed = [PROFILE.system_prompt, PROFILE.how_to_think, PROFILE.how_to_improve] * 200
    words = [" " + word for word in world.vocabulary(vocab) for _ in range(50)]
    tokenizer.train_from_iterator([*corpus, *fixed, *words, *(f" {p}" for p in places for _ in range(400))], trainer)
    return TextTokenizer(tokenizer)


def example_texts(vocab: str = "core", pairs: int = 8, seed: int = 0) -> tuple[str, ...]:
    """Thinking and reflections in the mini world's form; every second reflection finds nothing wrong."""
    rng, texts = np.random.default_rng([seed, 31]), list[str]()
    for number in range(pairs):
        request, scene = world.sample_pair(rng, vocab=vocab, background=0.3)
        shown, flaws = world.corrupt(request, scene, rng, vocab=vocab) if number % 2 else (scene, [])
        seen = world.see(shown)
        corrected = world.correct(request, seen, scene, rng) if number % 2 else scene
        texts += [world.think(request, scene), world.reflect(request, flaws, corrected, seen)]
    return tuple(texts)


def place_words(tokenizer: TextTokenizer, config: ModelConfig, size: int = 96) -> dict[int, tuple[float, float]]:
    """Token id -> (column, row) in latent tokens, for every place word of the vocabulary."""
    cell = size / world.GRID / config.image_stride
    places = {}
    for token in range(tokenizer.tokenizer.get_vocab_size()):
        if (match := PLACE.fullmatch(tokenizer.decode([token]))) is not None:
            col, row = ((int(place) + 0.5) * cell - 0.5 for place in match.groups())
            places[token] = (col, row)
    return places


@dataclass(frozen=True)
class Start:
    """Folders of the trained autoencoder and ViT (each with its safetensors file), and where the model goes."""

    autoencoder: str
    vit: str
    out: str
    seed: int = 0


def assemble(start: Start) -> Path:
    """Write the starting model folder."""
    tokenizer = train_tokenizer(start.seed)
    config = mini(tokenizer.tokenizer.get_vocab_size(), tokenizer.special)
    places = place_words(tokenizer, config)
    if len(places) < world.GRID**2:
        raise ValueError(f"only {len(places)} of {world.GRID**2} places became one token; raise the vocabulary")
    model = fresh_model(config, start.seed, places)
    autoencoder = build_autoencoder(config.autoencoder)
    autoencoder.load_state_dict(load_file(Path(start.autoencoder) / "ae.safetensors"))
    model.vit_model.load_state_dict(load_file(Path(start.vit) / "model.safetensors"))
    out = Path(start.out)
    save_model(out, config, model, autoencoder)
    tokenizer.tokenizer.save(str(out / "tokenizer.json"))
    replace(PROFILE, draft_texts=example_texts()).save(out)
    return out


if __name__ == "__main__":
    import tyro

    print(f"model to train from: {assemble(tyro.cli(Start))}")
