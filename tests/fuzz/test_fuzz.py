"""Changed and random bytes into every reader: a result or ``ValueError``, in 5 seconds and 1 GB.

``make fuzz`` runs it for minutes; here a few inputs a reader are tried, the same ones every time, and everything that
ever failed (``corpus/``).
"""

import os
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

pytest.importorskip("fastapi", reason="needs the extra serve")

from .mutations import changed, edits
from .readers import READERS, Reader

INPUTS = int(os.environ.get("IRG_FUZZ_INPUTS", "0"))
CORPUS = Path(__file__).parent / "corpus"
MOST_SECONDS, MOST_BYTES = 5, 1 << 30


@contextmanager
def bounded() -> Iterator[None]:
    """Interrupt what computes for more than 5 s (of this process's own time, so that a busy machine does not count)."""

    def over(*_: Any) -> None:
        raise TimeoutError(f"more than {MOST_SECONDS} s")

    before, usual = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, signal.signal(signal.SIGVTALRM, over)
    signal.setitimer(signal.ITIMER_VIRTUAL, MOST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, usual)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown < MOST_BYTES, f"{grown:,} bytes more"


def try_it(reader: Reader, content: bytes, folder: Path) -> None:
    """Give a reader some bytes."""
    from irg.endpoints import EndpointError
    from irg.endpoints.endpoint import Retry
    from irg.serving.errors import ApiError

    try:
        with bounded():
            reader.read(folder, content)
    except TimeoutError:
        raise
    except (ValueError, ApiError, EndpointError, Retry):
        pass


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(autouse=True)
def nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IRG_OFFLINE", "1")
    monkeypatch.delenv("IRG_DEBUG", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def folder_of(reader: Reader, places: Path) -> Path:
    folder = places / reader.name
    folder.mkdir(exist_ok=True)
    return folder


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_a_result_or_a_value_error(reader: Reader, places: Path) -> None:
    folder = folder_of(reader, places)

    @settings(
        max_examples=max(1, round((INPUTS or 12) * reader.weight)),
        derandomize=not INPUTS,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(st.sampled_from(reader.seeds) | st.binary(max_size=300), edits)
    def run(seed: bytes, changes: list[tuple[int, int, int]]) -> None:
        content = changed(seed, changes)
        try:
            try_it(reader, content, folder)
        except BaseException:
            (folder / "failed").write_bytes(content)
            raise

    try:
        run()
    except BaseException:
        if INPUTS and (kept := os.environ.get("IRG_FUZZ_KEEP")):
            shutil.copy(folder / "failed", Path(kept) / reader.name)
        raise


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_valid_files_are_read(reader: Reader, places: Path) -> None:
    """Else the changed ones would all end at the first check."""
    read = 0
    for seed in reader.seeds:
        try:
            reader.read(folder_of(reader, places), seed)
            read += 1
        except Exception as error:
            last = error
    assert read, last


KEPT = sorted(CORPUS.glob("*/*"))


@pytest.mark.parametrize("file", KEPT, ids=lambda file: f"{file.parent.name}-{file.name}")
def test_what_once_failed(file: Path, places: Path) -> None:
    (reader,) = (reader for reader in READERS if reader.name == file.parent.name)
    try_it(reader, file.read_bytes(), folder_of(reader, places))
