"""Rows from many files: none twice, none broken, none lost; and packs that are full."""

import base64
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from trajectory_rows import write_shards

from irg.curation.records import SCHEMA, TrajectoryRecord
from irg.learning.data.conversations import parse_conversation
from irg.learning.data.loader import PackLoader
from irg.learning.data.packing import Pack, read_images
from irg.learning.data.row_source import Cursor, reshard, trajectory_sources
from irg.learning.data.rows import BadRow, pixels_of
from irg.learning.data.samples import Address, Sample
from irg.learning.data.stream import DataStream, best_subset_sum, fitting
from irg.learning.modes import MODES
from irg.learning.recipe import Dropout, Mixture
from irg.model.network.config import tiny
from irg.model.weights.checkpoint import LoadedModel

from .conftest import make_image, records

Make = Callable[..., PackLoader]


def same(a: Pack, b: Pack) -> bool:
    return (
        torch.equal(a.batch.ids_U, b.batch.ids_U)
        and torch.equal(a.normal_G, b.normal_G)
        and torch.equal(a.batch.positions_T, b.batch.positions_T)
        and a.state == b.state
    )


# --------------------------------------------------------------------------------------------------------- row sources


def test_streams_share_every_epoch_without_overlap(tmp_path: Path) -> None:
    many = [TrajectoryRecord(f"p{i}", "t", make_image(i, 16, 16)) for i in range(150)]
    write_shards(many, tmp_path, rows_per_shard=40)
    (source,) = trajectory_sources(sorted(tmp_path.glob("*.parquet")), seed=3).values()
    assert (source.name, source.rows) == ("one-turn", 150)
    cursors = [Cursor(source, stream, 3) for stream in range(3)]
    seen: list[str] = []
    for cursor in cursors:
        while cursor.epoch == 0:
            where = cursor.next().content["prompt"]
            if cursor.epoch == 0:
                seen.append(where)
    assert sorted(seen) == sorted(f"p{i}" for i in range(150))
    assert seen != [f"p{i}" for i in range(150)]


def test_what_is_left_is_shared_by_another_number_of_streams(tmp_path: Path) -> None:
    """Half an epoch on three streams, the rest on two: every row once."""
    write_shards(
        [TrajectoryRecord(f"p{i}", "t", make_image(i, 16, 16)) for i in range(90)], tmp_path, rows_per_shard=90
    )
    (source,) = trajectory_sources(sorted(tmp_path.glob("*.parquet")), seed=0).values()
    cursors = [Cursor(source, stream, 3) for stream in range(3)]
    seen = [cursor.next().content["prompt"] for cursor in cursors for _ in range(11 + cursor.stream)]
    states = json.loads(json.dumps([cursor.state() for cursor in cursors]))
    for stream, state in enumerate(reshard(states, 2)):
        cursor = Cursor(source, stream, 2, state)
        while cursor.queue:
            found = cursor.next()
            if cursor.epoch == 0:
                seen.append(found.content["prompt"])
            else:
                break
    assert sorted(seen) == sorted(f"p{i}" for i in range(90))


def test_too_few_rows_for_the_streams(loader: Make) -> None:
    with pytest.raises(ValueError, match="one-turn has 3 rows in 3 pieces, too few for 4 packs a step"):
        loader(streams=4)


# --------------------------------------------------------------------------------------------------------------- packs


def test_a_resumed_stream_goes_on_bit_for_bit(loader: Make) -> None:
    whole = loader(streams=2)
    wanted = [[whole.pack(step, stream) for stream in range(2)] for step in range(5)]
    resumed = loader(streams=2)
    resumed.resume(json.loads(json.dumps([pack.state for pack in wanted[1]])))
    for step in (2, 3, 4):
        assert all(same(wanted[step][stream], resumed.pack(step, stream)) for stream in range(2))
    assert not same(wanted[2][0], wanted[2][1])


def test_another_number_of_streams_takes_over_what_waits(loader: Make) -> None:
    old = loader(streams=2)
    states = [old.pack(0, stream).state for stream in range(2)]
    new = loader(streams=1)
    new.resume(states)
    stream_states = new._states
    assert len(stream_states) == 1
    assert sorted(stream_states[0]["waiting"]) == sorted(entry for state in states for entry in state["waiting"])
    assert new.pack(1).tokens > 0


def test_the_mixture(loader: Make) -> None:
    """Weights are shares of samples drawn; mandatory modes are in every pack; latents are of what was read."""
    mixture = Mixture(initial_thinking_generation=3.0, initial_full=1.0, mandatory=("initial_full",))
    packs = loader(mixture=mixture, tokens_per_pack=400)
    made = [packs.pack(step) for step in range(10)]
    assert all(pack.modes["initial_full"] >= 1 for pack in made)
    only = loader(mixture=replace(mixture, mandatory=()), tokens_per_pack=400)
    counts = [pack.modes for pack in (only.pack(step) for step in range(25))]
    drawn = sum(c.get("initial_thinking_generation", 0) for c in counts)
    assert 0.65 < drawn / (drawn + sum(c.get("initial_full", 0) for c in counts)) < 0.85


def test_images_are_encoded_with_the_pack(loader: Make, tiny_loaded: LoadedModel) -> None:
    from irg.sequence.images import patchify, to_tensor

    mixture = Mixture(improving_full=1.0, mandatory=("improving_full",))
    pack = loader(mixture=mixture, dropout=Dropout(vae=0.0), tokens_per_pack=130, noise_copies=2).pack(0)
    assert pack.unread is not None and pack.unread.of_block[:3] == [0, 1, 1]
    n = pack.unread.pixels[0].shape[1] * pack.unread.pixels[0].shape[2] // 256  # both images have one size
    read_images(pack, tiny_loaded.autoencoder, tiny_loaded.config, torch.Generator())
    assert pack.clean_GD is not None and pack.unread is None
    candidates = []
    for record in records():
        if record.improved is not None:
            pixels = pixels_of(record.improved, "", tiny_loaded.config.vae_resize)
            latents = tiny_loaded.autoencoder.encode(to_tensor(Image.fromarray(pixels))[None])[0]
            candidates.append(patchify(latents.detach(), 2))
    half = pack.clean_GD[n : 2 * n], pack.clean_GD[2 * n : 3 * n]
    assert torch.equal(half[0], half[1])
    assert any(c.shape == half[0].shape and torch.allclose(c, half[0], atol=1e-5) for c in candidates)


def test_a_sample_drawn_from_the_posterior(loader: Make, tiny_loaded: LoadedModel) -> None:
    packs = [loader(mixture=Mixture(initial_full=1.0)).pack(0) for _ in range(2)]
    for pack, sample in zip(packs, (False, True), strict=True):
        read_images(pack, tiny_loaded.autoencoder, tiny_loaded.config, torch.Generator().manual_seed(0), sample)
    assert packs[0].clean_GD is not None and packs[1].clean_GD is not None
    apart = (packs[0].clean_GD - packs[1].clean_GD).std()
    assert 0.01 < apart < 0.1  # the compact autoencoder's posterior has a spread of 0.03


def test_long_samples_find_their_packs(loader: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stage 1 with nothing but images of 1024 x 1024: a sample that looks at two of them has room only beside short
    samples of the mandatory modes. None waits for ever, and packs stay full."""
    texts, vit, vae = 600, 4902, 4098
    images = {MODES[0]: (1, 1, 0), MODES[1]: (0, 0, 0), MODES[2]: (0, 0, 1)}  # ViT, VAE read, drawn
    images |= {MODES[3]: (2, 2, 0), MODES[4]: (1, 1, 0), MODES[5]: (1, 1, 1)}

    def sample(mode: Any, found: Any, stream: int, draw: int) -> Sample:
        vits, vaes, targets = images[mode]
        kept = int((np.random.default_rng([stream, draw]).random(vaes) >= 0.3).sum())
        n = texts + vits * vit + (kept + targets) * vae
        return Sample(Address(mode, 0, 0, stream, draw), [], range(n), "row")  # type: ignore[arg-type]

    mandatory = (MODES[1], MODES[2], MODES[4], MODES[5])
    packs = loader(mixture=Mixture(0.5, 0.5, 1.0, 0.5, 0.5, 1.0, mandatory=mandatory), tokens_per_pack=40_000, lookahead=32)  # fmt: skip # noqa: E501
    monkeypatch.setattr(packs.feed.builder, "sample", sample)
    stream = DataStream(packs.feed, 0)
    made = [stream.fill() for _ in range(300)]
    fills = [sum(map(len, pack)) / 40_000 for pack in made]
    assert np.mean(fills[-50:]) > 0.95 and max(fills) <= 1.0
    assert all({s.address.mode for s in pack} >= set(mandatory) for pack in made)
    waiting = [s for s in stream.waiting if s.address.mode == MODES[3]]
    assert len(waiting) < 16
    assert sum(s.address.mode == MODES[3] for pack in made for s in pack) > 100
    everything = [s.address.draw for pack in made for s in pack]
    assert len(set(everything)) == len(everything)


def test_fitting() -> None:
    def of(*lengths: int) -> list[Any]:
        return [range(n) for n in lengths]

    assert fitting([of(5, 2), of(4, 1)], 9) == of(5, 4)
    assert fitting([of(5, 2), of(4, 1)], 6) == of(2, 4)
    assert fitting([of(5, 2), of(4, 1)], 3) == of(2, 1)
    assert fitting([of(5, 2), of(4, 1)], 2) is None
    assert fitting([], 0) == [] and fitting([], -1) is None


# ------------------------------------------------------------------------------------------------------------- filling


def test_the_best_subset_sum() -> None:
    assert best_subset_sum([60, 50, 40, 30], 100, grain=10) == [0, 2]
    assert best_subset_sum([60, 50, 50], 100, grain=10) == [1, 2]
    assert best_subset_sum([200], 100, grain=10) == []
    assert best_subset_sum([35, 35, 35], 100, grain=10) == [0, 1]  # rounded up to 40 each: never too long
    assert best_subset_sum([], 100) == []


def test_packs_of_mixed_sizes_are_full() -> None:
    """Stage 1's samples at 512 to 1024 pixels: at least 95 % of 40,000 tokens, with 32 samples to choose from."""
    rng = np.random.default_rng(0)

    def sample() -> int:
        latents = int(rng.integers(32, 65)) * int(rng.integers(32, 65))
        patches = int(rng.integers(27, 71)) ** 2
        texts = int(rng.integers(200, 900))
        read = patches + latents * int(rng.random() >= 0.3)
        kinds = [texts + read, texts, texts + latents, texts + 2 * read, texts + read, texts + read + latents]
        return kinds[rng.choice(6, p=np.array([0.5, 0.5, 1, 0.5, 0.5, 1]) / 4)]

    waiting, fills = [sample() for _ in range(32)], []
    for _ in range(60):
        room = 40_000 - waiting[0]
        chosen = [0, *(1 + i for i in best_subset_sum(waiting[1:], room))]
        fills.append(sum(waiting[i] for i in chosen) / 40_000)
        waiting = [n for i, n in enumerate(waiting) if i not in set(chosen)]
        waiting += [sample() for _ in range(32 - len(waiting))]
    assert min(fills) > 0.95 and np.mean(fills) > 0.99 and max(fills) <= 1.0


# -------------------------------------------------------------------------------------------------------- broken rows


def test_broken_rows_are_refused_and_listed(loader: Make, tmp_path: Path) -> None:
    good = [TrajectoryRecord(f"p{i}", "t", make_image(i)) for i in range(3)]
    whole = [record.to_row() for record in good]
    cut = {**whole[0], "prompt": "cut", "image": {"bytes": whole[0]["image"]["bytes"][:40], "path": None}}
    dumb = {**whole[0], "thinking": None}
    long = {**whole[0], "thinking": "x" * 400}
    table = pa.Table.from_pylist([whole[0], cut, whole[1], dumb, long, whole[2]], SCHEMA)
    (tmp_path / "mixed").mkdir()
    pq.write_table(table, tmp_path / "mixed" / "a.parquet")
    packs = loader(data=(str(tmp_path / "mixed"),), mixture=Mixture(initial_full=1.0))
    ids = [packs.pack(step) for step in range(6)]
    refused_rows = {json.loads(line)["where"].rpartition("/")[2]: json.loads(line)["reason"] for line in (tmp_path / "rejected.jsonl").read_text().splitlines()}  # fmt: skip # noqa: E501
    assert set(refused_rows) == {"a.parquet, row 1", "a.parquet, row 3", "a.parquet, row 4"}
    assert "cannot be decoded" in refused_rows["a.parquet, row 1"]
    assert refused_rows["a.parquet, row 3"] == "a trajectory needs prompt, thinking and image; it lacks thinking"
    assert "more than tokens_per_pack 300" in refused_rows["a.parquet, row 4"]
    assert ids[-1].state["rejected"] == packs.feed.rejections.count >= 3


@pytest.mark.parametrize("column", [{"prompt": [3]}, {"image": [b"no struct"]}])
def test_columns_of_another_type(loader: Make, tmp_path: Path, column: dict[str, list[Any]]) -> None:
    row = {name: [value] for name, value in TrajectoryRecord("p", "t", make_image(0)).to_row().items()}
    pq.write_table(pa.table(row | column), tmp_path / "odd.parquet")
    with pytest.raises(ValueError, match=rf"odd\.parquet: .*column {next(iter(column))} must hold .*, it holds "):
        loader(data=(str(tmp_path / "odd.parquet"),), mixture=Mixture(initial_full=1.0))


def test_a_file_that_is_damaged_inside(loader: Make, tmp_path: Path) -> None:
    """Its footer is whole, its pages are not: the file is named."""
    write_shards([TrajectoryRecord(f"p{i}", "t", make_image(i)) for i in range(4)], tmp_path / "cut")
    file = tmp_path / "cut" / "part-00000.parquet"
    data, pages = bytearray(file.read_bytes()), pq.ParquetFile(file).metadata.row_group(0).column(1)
    data[pages.dictionary_page_offset : pages.dictionary_page_offset + 90] = b"\xff" * 90
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"part-00000\.parquet: row group 0 cannot be read"):
        loader(data=(str(file),), mixture=Mixture(initial_full=1.0)).pack(0)


@pytest.mark.filterwarnings("ignore")  # what decoders say of damaged files
def test_any_damage_to_an_image_is_a_broken_row() -> None:
    """Whatever a decoder stumbles over: it is the row that is refused."""
    rng, rule = np.random.default_rng(0), tiny().vae_resize
    refused = 0
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"):
        whole = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(whole, kind)
        for _ in range(60):
            data = bytearray(whole.getvalue())
            for at in rng.integers(0, min(200, len(data)), 4):
                data[at] = rng.integers(256)
            try:
                pixels_of(bytes(data), "here", rule)
            except BadRow:
                refused += 1
    assert refused > 60


def test_nothing_fit_to_be_used(loader: Make, tmp_path: Path) -> None:
    table = pa.Table.from_pylist([TrajectoryRecord("p", "t", b"no make_image").to_row()], SCHEMA)
    pq.write_table(table, tmp_path / "bad.parquet")
    with pytest.raises(ValueError, match=r"no row for initial_full is fit to be used.*bad\.parquet, row 0"):
        loader(data=(str(tmp_path / "bad.parquet"),), mixture=Mixture(initial_full=1.0)).pack(0)


# -------------------------------------------------------------------------------------------------------- conversations


def image(seed: int, **needs: bool) -> dict[str, Any]:
    content = base64.b64encode(make_image(seed)).decode()
    return {"type": "image", "content": content, **{f"need_{name}": value for name, value in needs.items()}}


MODE_6 = [
    {"role": "user", "content": "p"},
    {
        "role": "assistant",
        "content": [
            {"type": "text", "content": "idea", "need_loss": False},
            image(1, vae=True, vit=True),
            {"type": "text", "content": "fix"},
            image(2, loss=True),
        ],
    },
]


def test_a_conversation_is_read_as_it_is(loader: Make, tmp_path: Path, words: Callable[[str], tuple[int, ...]]) -> None:
    """No system prompt is added; I1 is read in both forms, T2 and I2 carry loss."""
    pq.write_table(pa.table({"conversation": [json.dumps(MODE_6)]}), tmp_path / "c.parquet")
    conversations = {"improving_full": (str(tmp_path / "c.parquet"),)}
    mixture = Mixture(improving_full=1.0, mandatory=("improving_full",))
    options = {"data": (), "conversations": conversations, "mixture": mixture, "dropout": Dropout(vae=0.0)}
    pack = loader(**options, tokens_per_pack=100).pack(0)
    bos, eos, soi, eoi = 256, 257, 258, 259
    idea, fix = ((bos, *words(text), eos) for text in ("idea", "fix"))
    wanted = [bos, *words("p"), eos, *idea, soi, eoi, soi, 0, 0, 0, 0, eoi, *fix, soi, eoi]
    copies = pack.modes["improving_full"]  # the only row, again and again
    assert pack.batch.ids_U.tolist() == wanted * copies
    assert pack.labels_L.tolist() == [*words("fix"), eos] * copies
    assert len(pack.target_rows_M) == 4 * copies


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not valid JSON"),
        (None, "not valid JSON"),
        ("[]", "a list of turns"),
        ('[{"role": "tool", "content": "x"}]', "turn 0: role 'tool' is none of user, assistant, system"),
        ('[{"role": "system", "content": "x"}]', "nothing in the conversation carries loss"),  # a text that is given
        ('[{"role": "user", "content": "x"}]', "nothing in the conversation carries loss"),
        ('[{"role": "assistant", "content": [{"type": "text"}]}]', "turn 0, part 0: a part needs a content"),
        ('[{"role": "assistant", "content": [{"type": "video", "content": "x"}]}]', "unknown type 'video'"),
        ('[{"role": "assistant", "content": [{"type": "image", "content": "x"}]}]', "neither need_loss nor"),
        ('[{"role": "assistant", "content": [{"type": "image", "content": "?", "need_loss": true}]}]', "not base64"),
        ('[{"role": "assistant", "content": [{"type": "text", "content": "x", "need_loss": 1}]}]', "true or false"),
    ],
)
def test_broken_conversations(text: str | None, reason: str) -> None:
    with pytest.raises(BadRow, match=f"here: .*{reason}"):
        parse_conversation(text, "here")
