"""Text <-> token ids, from a ``tokenizer.json``. Special tokens are never read out of a user's text."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from irg.sequence.special import SpecialTokens

SPECIAL_NAMES = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")


class TextTokenizer:
    """A thin wrapper of a ``tokenizers`` tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.encode_special_tokens = True  # "<|im_end|>" typed by a user is text, not control
        self.tokenizer = tokenizer

    @classmethod
    def from_file(cls, path: Path) -> "TextTokenizer":
        """Read a ``tokenizer.json``.

        Raises:
            ValueError: the file is missing or not a tokenizer.
        """
        if not path.is_file():
            raise ValueError(f"{path} is missing: a model folder needs its tokenizer")
        try:
            return cls(Tokenizer.from_file(str(path)))
        except Exception as error:  # the library raises plain Exception
            raise ValueError(f"{path} is not a readable tokenizer: {error}") from None

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

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of a text, without any wrapping."""
        return tuple(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_many(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Ids of many texts, in parallel."""
        return [tuple(e.ids) for e in self.tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; special tokens are left out."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def stream(self) -> Callable[[int], str]:
        """A function that takes the next token and returns the text it completes ("" while a character is partial)."""
        stream = DecodeStream(skip_special_tokens=True)
        return lambda token: stream.step(self.tokenizer, token) or ""
