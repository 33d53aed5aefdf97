"""Sorting by a hash, a bucket at a time."""

import errno
from pathlib import Path

import pyarrow as pa
import pytest

from irg.curation import buckets
from irg.curation.buckets import Buckets
from irg.curation.store import digest

SCHEMA = pa.schema([("id", pa.string()), ("image", pa.binary())])


def table(rows: range) -> pa.Table:
    return pa.Table.from_pylist([{"id": str(row), "image": bytes(1000)} for row in rows], SCHEMA)


def test_all_rows_come_in_the_order_of_the_hash_and_no_bucket_is_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "MOST_FILES", 3)
    with Buckets(tmp_path / "b", SCHEMA, seed=7, limit=20_000, size=10**9) as few:
        for start in range(0, 600, 100):
            few.add(table(range(start, start + 100)))
        assert len(list(tmp_path.rglob("*.arrow"))) == 3  # 200 kB each, so each is dealt again, twice
        tables = list(few.sorted())
    names = [name for one in tables for name in one["id"].to_pylist()]
    assert names == sorted(map(str, range(600)), key=lambda name: digest("shuffle", 7, name))
    assert len(tables) > 20 and max(len(one) for one in tables) <= 40
    assert not list(tmp_path.rglob("*.arrow"))


def test_a_row_larger_than_a_bucket_ends_the_dealing(tmp_path: Path) -> None:
    with Buckets(tmp_path, SCHEMA, seed=0, limit=10, size=1) as one:
        one.add(table(range(2)))
        assert sum(map(len, one.sorted())) == 2


def test_no_rows_are_no_files(tmp_path: Path) -> None:
    with Buckets(tmp_path / "b", SCHEMA, seed=0, limit=10, size=0) as none:
        assert list(none.sorted()) == [] and not (tmp_path / "b").exists()


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    with pytest.raises(OSError) as caught, Buckets(tmp_path, SCHEMA, seed=0, limit=10**6, size=0) as one:
        (tmp_path / "000.arrow").symlink_to("/dev/full")
        one.add(table(range(2)))
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(tmp_path / "000.arrow")
