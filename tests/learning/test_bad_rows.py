"""Rows that can't be used are refused one by one, by file and row; and rows of every form that is written are read."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from irg.curation.check import validate
from irg.learning.data.conversation_writer import conversation
from irg.learning.data.conversations import Piece, parse_conversation
from irg.learning.data.loader import PackLoader
from irg.learning.data.row_source import SourceRow, content_digest
from irg.learning.data.rows import BadRow
from irg.learning.data.samples import TrajectoryEncoder
from irg.learning.data.schema import COLUMNS, TrajectoryRow
from irg.learning.modes import IRGL, turns, write
from irg.learning.recipe import Mixture
from irg.learning.resume_check import same_rows
from irg.reasoning.prompts import BAGEL_PROFILE
from irg.sequence.parts import Text

from .conftest import make_image, records

Make = Callable[..., PackLoader]
PNG = make_image(1)
B64 = base64.b64encode(PNG).decode()
WRAPPED = base64.encodebytes(PNG).decode()


def table(*rows: dict[str, Any]) -> pa.Table:
    whole = [dict.fromkeys(COLUMNS) | {"prompt": "p", "thinking": "t", "image": {"bytes": PNG}} | row for row in rows]
    return pa.Table.from_pylist(whole, pa.schema(list(COLUMNS.items())))


def refused(tmp_path: Path) -> list[str]:
    lines = (tmp_path / "rejected.jsonl").read_text().splitlines()
    return [f"{entry['where']}: {entry['reason']}" for entry in map(json.loads, lines)]


IMPROVING = Mixture(initial_full=1.0, improving_full=1.0)


@pytest.mark.parametrize("stream", [True, False])
def test_a_row_with_an_empty_reflection_is_refused_and_named(loader: Make, tmp_path: Path, stream: bool) -> None:
    pq.write_table(table({"reflection": ""}, {"reflection": "  "}), tmp_path / "rows" / "odd.parquet")
    packs = loader(stream=stream, mixture=IMPROVING)
    for step in range(12):
        packs.pack(step)
    told = refused(tmp_path)
    assert any("odd.parquet, row 0: the reflection is empty" in line for line in told)
    assert any("odd.parquet, row 1: the reflection is empty" in line for line in told)


@pytest.mark.parametrize("stream", [True, False])
def test_rows_that_are_too_long_are_listed_whether_they_are_streamed_or_held(
    loader: Make, tmp_path: Path, stream: bool
) -> None:
    long = [{"prompt": "p " * 600, "thinking": "t"} for _ in range(20)]
    pq.write_table(table(*long), tmp_path / "rows" / "long.parquet")
    packs = loader(stream=stream, mixture=Mixture(initial_full=1.0))
    made = [packs.pack(step) for step in range(12)]
    told = [line for line in refused(tmp_path) if "long.parquet" in line]
    assert told and all("more than tokens_per_pack 300" in line for line in told)
    assert made[-1].state["rejected"] == len(refused(tmp_path))


@pytest.mark.parametrize("stream", [True, False])
def test_a_text_that_is_not_utf8_is_refused_and_named(loader: Make, tmp_path: Path, stream: bool) -> None:
    whole = table({}, {}, {})
    broken = pa.Array.from_buffers(pa.string(), 3, pa.array([b"fine", b"\xff\xfe", b"fine"]).buffers())
    whole = whole.set_column(1, "thinking", broken)
    pq.write_table(whole, tmp_path / "rows" / "odd.parquet")
    packs = loader(stream=stream, mixture=Mixture(initial_full=1.0))
    for step in range(8):
        packs.pack(step)
    assert set(refused(tmp_path)) == {
        f"{tmp_path / 'rows' / 'odd.parquet'}, row 1: a text is not UTF-8: invalid start byte"
    }


@pytest.mark.parametrize("stream", [True, False])
def test_images_by_path_are_read_from_beside_the_file(loader: Make, tmp_path: Path, stream: bool) -> None:
    (tmp_path / "rows" / "images").mkdir()
    (tmp_path / "rows" / "images" / "a.png").write_bytes(PNG)
    (tmp_path / "secret.png").write_bytes(PNG)
    paths = ["images/a.png", str(tmp_path / "rows" / "images" / "a.png"), "../secret.png", "images/none.png", "images"]
    by_path = [{"image": {"bytes": None, "path": path}} for path in paths]
    pq.write_table(table(*by_path), tmp_path / "rows" / "paths.parquet")
    packs = loader(stream=stream, mixture=Mixture(initial_full=1.0))
    for step in range(12):
        packs.pack(step)
    told = {line.partition("paths.parquet, ")[2][:20] for line in refused(tmp_path)}
    assert told == {"row 2: the image '..", "row 3: the image 'im", "row 4: the image 'im"}
    assert any("row 2: the image '../secret.png' is outside of" in line for line in refused(tmp_path))
    assert len(validate(tmp_path / "rows" / "paths.parquet").problems) >= 3


def test_a_link_that_leads_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "secret.png").write_bytes(PNG)
    (tmp_path / "rows" / "a.png").symlink_to(tmp_path / "secret.png")
    row = table({"image": {"bytes": None, "path": "a.png"}}).to_pylist()[0]
    with pytest.raises(ValueError, match="is outside of"):
        TrajectoryRow.from_columns(row, tmp_path / "rows")


# -------------------------------------------------------------------------------------------------------- conversations


def part(kind: str, content: str, **flags: bool) -> dict[str, Any]:
    return {"type": kind, "content": content} | {f"need_{name}": flag for name, flag in flags.items()}


@pytest.mark.parametrize("data", [B64, WRAPPED, WRAPPED.replace("\n", "\r\n"), f"data:image/png;base64,{WRAPPED}"])
def test_base64_may_have_line_breaks(data: str) -> None:
    turns_ = [{"role": "user", "content": "p"}, {"role": "assistant", "content": [part("image", data, loss=True)]}]
    assert parse_conversation(json.dumps(turns_), "w")[1].image == PNG


@pytest.mark.parametrize(
    "turns_",
    [
        [{"from": "human", "value": "p"}, {"from": "gpt", "value": "t"}],
        [{"role": "user", "content": "p"}, {"role": "assistant", "content": "t"}],
        [
            {"role": "user", "content": [{"type": "text", "text": "p"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "t"}]},
        ],
        ["p", [part("text", "t")]],
    ],
)
def test_other_forms_of_conversations_are_the_same_pieces(turns_: list[Any]) -> None:
    if not isinstance(turns_[0], dict):
        turns_ = [{"role": "user", "content": turns_[0]}, {"role": "assistant", "content": turns_[1]}]
    assert parse_conversation(json.dumps(turns_), "w") == [Piece(text="p"), Piece(text="t", loss=True)]


def test_images_in_openais_form_are_read_in_questions_and_drawn_in_answers() -> None:
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{B64}"}}
    found = parse_conversation(
        json.dumps([{"role": "user", "content": [image]}, {"role": "assistant", "content": [image]}]), "w"
    )
    assert found == [Piece(image=PNG, vae=True, vit=True), Piece(image=PNG, loss=True)]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[{"role": "user", "content": "\\ud83d"}]', "half of a surrogate pair"),
        ("[" * 200_000, "nested too deeply"),
        ('{"a":' * 200_000, "nested too deeply"),
        ('["p"]', "a turn must be an object"),
        ('[{"from": "robot", "value": "p"}]', "role 'robot' is none of"),
        ('[{"from": ["gpt"], "value": "p"}]', "role"),
        (
            '[{"role": "assistant", "content": [{"type": "image_url", "image_url": {"url": "http://x/a.png"}}]}]',
            "addresses are not fetched",
        ),
        (
            '[{"role": "assistant", "content": [{"type": "image", "content": "\\u00e9", "need_loss": true}]}]',
            "not base64",
        ),
    ],
)
def test_broken_conversations_are_refused(text: str, told: str) -> None:
    with pytest.raises(BadRow, match=told):
        parse_conversation(text, "w")


@pytest.mark.parametrize("mode", IRGL)
def test_an_exported_conversation_is_trained_on_as_the_trajectory_is(
    mode: Any, encoder: TrajectoryEncoder, tiny_loaded: Any, tiny_tokenizer: Any
) -> None:
    """The same texts in the same order, the system prompt of generation among them."""
    bagel = TrajectoryEncoder(tiny_loaded.config, tiny_tokenizer, BAGEL_PROFILE)
    record = next(one for one in records() if (2 if one.improved else 1) == turns(mode))
    row = TrajectoryRow(record.prompt, record.thinking, record.image, record.reflection, record.improved)
    whole = write(mode, bagel.trajectory(SourceRow(0, 0, "w", row.to_columns())))
    told = bagel.conversation(json.dumps(conversation(row, mode)), "w")
    assert [type(one) for one in told] == [type(one) for one in whole]
    texts = [[(one.ids, one.loss) for one in parts if isinstance(one, Text)] for parts in (whole, told)]
    assert texts[0] == texts[1] and texts[0][0] == (bagel.fixed["system"], False)


# ------------------------------------------------------------------------------------------------------------ resuming


def test_rows_written_anew_are_noticed(loader: Make, tmp_path: Path) -> None:
    file = sorted((tmp_path / "rows").glob("*.parquet"))[0]
    size = file.stat().st_size
    before = loader().fingerprint
    data = bytearray(file.read_bytes())
    place = bytes(data).index(b"thought 1")
    data[place : place + 9] = b"thinking1"
    file.write_bytes(data)
    content_digest.cache_clear()
    assert file.stat().st_size == size and loader().fingerprint != before
    assert loader().fingerprint.partition("-")[0] == before.partition("-")[0]
    about = {"rows": before}
    with pytest.raises(ValueError, match="the training rows are not those of"):
        same_rows(about, loader().fingerprint, tmp_path, force=False, quiet=True)
    assert same_rows(about, before, tmp_path, False, True)
    assert same_rows({"rows": before.partition("-")[0]}, before, tmp_path, False, True)  # of an earlier version
