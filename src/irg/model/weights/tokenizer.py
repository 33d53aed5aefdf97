"""Text <-> token ids, from a folder's ``tokenizer.json``, or ``vocab.json`` with ``merges.txt``.

Control tokens are never read out of a user's text: whatever looks like ``<|im_end|>`` in it is spelled out.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import DecodeStream

from irg.model.network.config import ModelConfig
from irg.model.weights.config_files import END_OF_TEXT, how_to_complete, read_json
from irg.sequence.special import SpecialTokens

SPECIAL_NAMES = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
TOKENIZER, VOCAB, MERGES = "tokenizer.json", "vocab.json", "merges.txt"
_ADDED, _CONFIG = "added_tokens.json", "tokenizer_config.json"
FILES = (TOKENIZER, VOCAB, MERGES, _ADDED, _CONFIG, "special_tokens_map.json")
MAX_MERGES_BYTES = 1 << 26
# How Qwen2 splits a text before it merges bytes: contractions, words, single digits, other signs, spaces.
_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class TextTokenizer:
    """A thin wrapper of a ``tokenizers`` tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        # "<|im_end|>" typed by a user is text, not control; that holds for tokens which are marked as special only
        tokenizer.encode_special_tokens = True
        plain = [
            token.content
            for token in tokenizer.get_added_tokens_decoder().values()
            if not token.special and token.content.startswith("<") and token.content.endswith(">")
        ]
        if plain:
            tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in plain])
        self.tokenizer = tokenizer

    @classmethod
    def from_folder(cls, folder: Path) -> "TextTokenizer":
        """Read a model folder's tokenizer: ``tokenizer.json``, else Qwen2's ``vocab.json`` and ``merges.txt``.

        Wrapping tokens that the files lack follow the last id in the order of :data:`SPECIAL_NAMES`, as the reference
        adds them; before them comes ``<|endoftext|>`` where two files make the tokenizer.

        Raises:
            ValueError: the files are missing or not a tokenizer.
        """
        folder = Path(folder)
        wanted: tuple[str, ...] = SPECIAL_NAMES
        if (folder / TOKENIZER).is_file():
            tokenizer = cls.from_file(folder / TOKENIZER)
        elif (folder / VOCAB).is_file() and (folder / MERGES).is_file():
            tokenizer = cls(_from_vocabulary(folder))
            wanted = (END_OF_TEXT, *SPECIAL_NAMES)  # Qwen2's tokenizer has it already, BAGEL adds the others after it
        else:
            raise ValueError(
                f"{folder} has no tokenizer: it needs {TOKENIZER}, or {VOCAB} and {MERGES}; {how_to_complete(folder)}"
            )
        missing = [name for name in wanted if tokenizer.tokenizer.token_to_id(name) is None]
        if missing:
            tokenizer.tokenizer.add_special_tokens([AddedToken(n, special=True, normalized=False) for n in missing])
        return tokenizer

    @classmethod
    def from_file(cls, path: Path) -> "TextTokenizer":
        """Read a ``tokenizer.json``.

        Raises:
            ValueError: the file is missing or not a tokenizer.
        """
        if not path.is_file():
            raise ValueError(f"{path} is missing: a model folder needs its tokenizer")
        with _told(f"{path} is not a readable tokenizer"):
            return cls(Tokenizer.from_file(str(path)))

    @property
    def special(self) -> SpecialTokens:
        """Ids of the wrapping tokens, by their names in BAGEL's (Qwen2's) vocabulary.

        Raises:
            ValueError: the vocabulary lacks one of them.
        """
        ids = []
        for name in SPECIAL_NAMES:
            token = self.tokenizer.token_to_id(name)
            if token is None:
                raise ValueError(f"the tokenizer has no token {name!r}")
            ids.append(token)
        return SpecialTokens(*ids)

    def check(self, config: ModelConfig, folder: Path) -> None:
        """Make sure that this is the tokenizer of the model in ``folder``.

        Raises:
            ValueError: a wrapping token has another id than in the configuration, or an id is beyond the embedding.
        """
        if self.special != config.special:
            raise ValueError(f"{folder}: the tokenizer has {self.special}, the configuration {config.special}")
        last, rows = max(self.tokenizer.get_vocab(with_added_tokens=True).values()), config.decoder.vocab_size
        if last >= rows:
            raise ValueError(f"{folder}: the tokenizer has ids up to {last}, the model's vocabulary {rows} of them")

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of a text, without any wrapping."""
        return tuple(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; special tokens are left out."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def stream(self) -> Callable[[int], str]:
        """A function that takes the next token and returns the text it completes ("" while a character is partial)."""
        stream = DecodeStream(skip_special_tokens=True)
        return lambda token: stream.step(self.tokenizer, token) or ""


@contextmanager
def _told(what: str) -> Iterator[None]:
    """The library's failures, which are plain ``Exception`` or a panic of its Rust code, as ValueError."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"{what}: {error}") from None


def _from_vocabulary(folder: Path) -> Tokenizer:
    """Qwen2's byte-level BPE from ``vocab.json``, ``merges.txt`` and the added tokens the other files list."""
    vocab = {token: index for token, index in read_json(folder / VOCAB).items() if type(index) is int}
    added = _added_tokens(folder, vocab)
    description = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": _QWEN2_SPLIT}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
            ],
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "model": {"type": "BPE", "vocab": vocab, "merges": _merges(folder / MERGES), "byte_fallback": False},
    }
    with _told(f"{folder / VOCAB} and {MERGES} are not a readable tokenizer"):
        tokenizer = Tokenizer.from_str(json.dumps(description))
    moved = [token["content"] for token in added if tokenizer.token_to_id(token["content"]) != token["id"]]
    if moved:
        raise ValueError(
            f"{folder / _CONFIG}: the id of {moved[0]} is not the one after the vocabulary's last, so {VOCAB} and "
            f"{MERGES} do not make this tokenizer; use its {TOKENIZER}"
        )
    return tokenizer


def _added_tokens(folder: Path, vocab: dict[str, int]) -> list[dict[str, Any]]:
    """Tokens beside the vocabulary, in ``tokenizer.json``'s form, by id."""
    found: dict[int, dict[str, Any]] = {}
    if (folder / _ADDED).is_file():
        for name, index in read_json(folder / _ADDED).items():
            if type(index) is int:
                found[index] = {"content": name, "special": name.startswith("<|")}
    if (folder / _CONFIG).is_file():
        listed = read_json(folder / _CONFIG).get("added_tokens_decoder")
        for index, token in (listed if isinstance(listed, dict) else {}).items():
            if index.isdecimal() and isinstance(token, dict) and isinstance(token.get("content"), str):
                found[int(index)] = token
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return [
        {"id": index, "content": token["content"]} | {flag: bool(token.get(flag, False)) for flag in flags}
        for index, token in sorted(found.items())
        if vocab.get(token["content"], index) == index
    ]


def _merges(path: Path) -> list[list[str]]:
    """Pairs of ``merges.txt``; a first line with the version is no pair.

    Raises:
        ValueError: a line is not two words.
    """
    try:
        if path.stat().st_size > MAX_MERGES_BYTES:
            raise ValueError(f"{path}: larger than {MAX_MERGES_BYTES >> 20} MiB, so not what its name says")
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: can't be read: {error}") from None
    pairs = [line.split(" ") for line in lines if line.strip() and not line.startswith("#version")]
    wrong = next((pair for pair in pairs if len(pair) != 2), None)
    if wrong is not None:
        raise ValueError(f"{path}: {' '.join(wrong)[:40]!r} is not a pair of words")
    return pairs
