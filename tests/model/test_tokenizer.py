"""Tokenizers of model folders: two forms, the reference's special tokens, and text that stays text."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from irg.model.weights.config_files import special_ids
from irg.model.weights.tokenizer import SPECIAL_NAMES, TextTokenizer

LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
VOCAB = {letter: i for i, letter in enumerate(LETTERS)} | {"he": 256, "ll": 257, "hell": 258, "Ġa": 259}
MERGES = "#version: 0.2\nh e\nl l\nhe ll\nĠ a\n"
MARKERS = (*SPECIAL_NAMES, "<|endoftext|>", "<|im_start|>system\n", "<|fim_prefix|>", "<tool_call>", "</tool_call>")


def files(folder: Path, added: dict[str, Any] | None = None) -> Path:
    (folder / "vocab.json").write_text(json.dumps(VOCAB), encoding="utf-8")
    (folder / "merges.txt").write_text(MERGES, encoding="utf-8")
    if added is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    return folder


def qwen_like(special: bool = True) -> TextTokenizer:
    """A byte vocabulary with Qwen2's added tokens, marked as special or not."""
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(LETTERS)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = ["<|endoftext|>", *SPECIAL_NAMES, "<|fim_prefix|>", "<tool_call>", "</tool_call>"]
    tokenizer.add_tokens([AddedToken(name, special=special, normalized=False) for name in names])
    return TextTokenizer(tokenizer)


def test_two_files_make_qwen2s_tokenizer(tmp_path: Path) -> None:
    """Merges in order; digits one by one; a space belongs to the word behind it; nothing lost."""
    tokenizer = TextTokenizer.from_folder(files(tmp_path))
    assert tokenizer.encode("hello") == (258, VOCAB["o"])
    assert tokenizer.encode("a a") == (VOCAB["a"], 259)
    assert tokenizer.encode("12") == (VOCAB["1"], VOCAB["2"])
    assert tokenizer.decode(tokenizer.encode("hello,  wörld 水\n\n 1984!")) == "hello,  wörld 水\n\n 1984!"


def test_text_is_normalized_to_nfc(tmp_path: Path) -> None:
    tokenizer = TextTokenizer.from_folder(files(tmp_path))
    assert tokenizer.encode("o\u0308") == tokenizer.encode("ö")


def test_missing_special_tokens_follow_the_last_id(tmp_path: Path) -> None:
    tokenizer = TextTokenizer.from_folder(files(tmp_path))
    assert list(vars(tokenizer.special).values()) == [261, 262, 263, 264] == special_ids(tmp_path)
    assert tokenizer.tokenizer.token_to_id("<|endoftext|>") == 260, "as transformers' Qwen2Tokenizer has it"


def test_listed_special_tokens_keep_their_ids(tmp_path: Path) -> None:
    """Qwen2's files: <|endoftext|> first, then the chat's; what vision needs is there or is added behind."""
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    added = {str(260 + i): {"content": name, "special": True} for i, name in enumerate(names)}
    tokenizer = TextTokenizer.from_folder(files(tmp_path, added))
    assert list(vars(tokenizer.special).values()) == [261, 262, 263, 264] == special_ids(tmp_path)


def test_a_tokenizer_json_without_vision_tokens_gets_them(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(LETTERS)}, []))
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    special = TextTokenizer.from_folder(tmp_path).special
    assert list(vars(special).values()) == [256, 257, 258, 259] == special_ids(tmp_path)


def test_ids_with_a_gap_are_refused(tmp_path: Path) -> None:
    """The library numbers added tokens itself; a folder that says otherwise is not read wrongly."""
    with pytest.raises(ValueError, match=r"<\|im_start\|> is not the one after"):
        TextTokenizer.from_folder(files(tmp_path, {"300": {"content": "<|im_start|>", "special": True}}))


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("merges.txt", "h e x\n", "not a pair"),
        ("merges.txt", "q z\n", "not a readable tokenizer"),
        ("vocab.json", "[]", "expected a JSON object"),
        ("vocab.json", "{", "not valid JSON"),
        ("tokenizer.json", "{}", "not a readable tokenizer"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, content: str, told: str) -> None:
    files(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=told):
        TextTokenizer.from_folder(tmp_path)


def test_a_folder_without_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs tokenizer.json, or vocab.json and merges.txt"):
        TextTokenizer.from_folder(tmp_path)


TEXTS = st.lists(st.one_of(st.sampled_from(MARKERS), st.text(max_size=6)), max_size=6).map("".join)
SPECIAL, PLAIN = qwen_like(), qwen_like(special=False)


@settings(deadline=None)
@given(TEXTS)
@pytest.mark.parametrize("tokenizer", [SPECIAL, PLAIN], ids=["marked special", "not marked"])
def test_markers_in_a_prompt_are_plain_text(tokenizer: TextTokenizer, text: str) -> None:
    """Whatever a user writes, no control token comes of it, and every character of it is read."""
    ids = tokenizer.encode(text)
    assert not [i for i in ids if i >= 256]
    assert tokenizer.decode(ids) == text.encode("utf-8", "replace").decode("utf-8")


# ------------------------------------------------------------------------------------------- Qwen2's own vocabulary

ODD = (
    "a red bicycle on a beach",
    "  two  spaces, a tab\t, lines\n\n\r\n and an end  ",
    "don't WE'RE they'll I'M",
    "1234567890 3.14 １２３",
    "日本語の文章 и русский עברית العربية",
    "e\u0301 decomposed, ﬁ ligature, ½",
    "👩‍🚀🏳️‍🌈 \U0001f9ff\u200d",
    "<|im_start|>system<|im_end|><|vision_start|><tool_call>",
    "def f(x):\n    return {**x, 'a': [1]}  # ok\n",
    "\u00a0nbsp\u2028line\u3000wide",
    "ſpecial K \u212a Å",
)
FIRST_ADDED = 151_643


def published_files(folder: Path, source: Path, form: str) -> Path:
    folder.mkdir()
    for name in ("tokenizer.json",) if form == "tokenizer.json" else ("vocab.json", "merges.txt"):
        content = (source / name).read_bytes()
        (folder / name).write_bytes(content.replace(b"\n", b"\r\n") if form == "CRLF" else content)
    (folder / "tokenizer_config.json").write_bytes((source / "tokenizer_config.json").read_bytes())
    return folder


@pytest.mark.parametrize("form", ["tokenizer.json", "two files", "CRLF"])
def test_qwen2s_vocabulary(qwen2: Path, tmp_path: Path, form: str) -> None:
    """Its known ids, and the ids of the tokenizers library for odd texts."""
    tokenizer = TextTokenizer.from_folder(published_files(tmp_path / "m", qwen2, form))
    special = [151_644, 151_645, 151_652, 151_653]
    assert list(vars(tokenizer.special).values()) == special == special_ids(tmp_path / "m")
    assert tokenizer.encode("a red bicycle on a beach") == (64, 2518, 34986, 389, 264, 11321)
    library = Tokenizer.from_file(str(qwen2 / "tokenizer.json"))
    library.encode_special_tokens = True
    for text in ODD:
        wanted = library.encode(text, add_special_tokens=False).ids
        got = tokenizer.encode(text)
        if "<" not in text:  # <tool_call> is not marked as special there, so the library reads it as control
            assert list(got) == wanted, text
        assert max(got) < FIRST_ADDED and tokenizer.decode(got) == unicodedata.normalize("NFC", text)


def test_qwen2s_ids_are_those_of_transformers(qwen2: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = published_files(tmp_path / "m", qwen2, "two files")
    theirs = transformers.Qwen2Tokenizer.from_pretrained(str(folder))
    ours = TextTokenizer.from_folder(folder)
    for text in ODD:
        if "<" not in text:
            assert list(ours.encode(text)) == theirs(text, add_special_tokens=False)["input_ids"], text


def test_two_file_tokenizers_keep_markers_plain_too(tmp_path: Path) -> None:
    tokenizer = TextTokenizer.from_folder(files(tmp_path, {"260": {"content": "<|im_start|>", "special": False}}))
    text = "a <|im_end|><|vision_start|> b <|im_start|>"
    assert max(tokenizer.encode(text)) < 260
    assert tokenizer.decode(tokenizer.encode(text)) == unicodedata.normalize("NFC", text)


def test_special_tokens_are_left_out_of_what_the_model_writes() -> None:
    special = SPECIAL.special
    ids = [special.bos, *SPECIAL.encode("hi"), special.end_of_image, special.eos]
    assert SPECIAL.decode(ids) == "hi"
