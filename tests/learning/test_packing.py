"""From rows to packs, streamed or held in memory."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor
from trajectory_rows import write_shards

from irg.curation.records import SCHEMA, TrajectoryRecord
from irg.learning.data.in_memory import hold_in_memory
from irg.learning.data.loader import PackLoader
from irg.learning.data.packing import Pack, pack_of, read_images
from irg.learning.data.row_source import trajectory_sources
from irg.learning.data.rows import BadRow
from irg.learning.data.samples import TrajectoryEncoder
from irg.learning.data.schema import COLUMNS, TrajectoryRow
from irg.learning.modes import MODES, EncodedTrajectory
from irg.learning.recipe import Dropout, Mixture
from irg.model.weights.checkpoint import LoadedModel

from .conftest import PROFILE, make_image, records

Make = Callable[..., PackLoader]
BOS, EOS, START, END = 256, 257, 258, 259
ALL = Mixture(*[1.0] * 8)
NO_DROPOUT = Dropout(vae=0.0)


def tensors(pack: Pack) -> dict[str, Tensor]:
    found = {**vars(pack.batch), **vars(pack)}
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def identical(a: Pack, b: Pack) -> bool:
    left, right = tensors(a), tensors(b)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def one(loader: Make, mode: str, noise_copies: int = 1, dropout: Dropout = NO_DROPOUT, row: int = 0) -> Pack:
    """A pack of one sample, from memory."""
    packs = loader(mixture=Mixture(**{mode: 1.0}), stream=False, noise_copies=noise_copies, dropout=dropout)
    source = packs.feed.source_of(mode)  # type: ignore[arg-type]
    sample = packs.feed.builder.sample(mode, list(source.in_file_order())[row], 0, 0)  # type: ignore[arg-type]
    numbers = iter(range(10))
    return pack_of([sample.parts], [sample.layout], packs.feed.builder.config, lambda: next(numbers), [mode])  # type: ignore[list-item]  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------- packs


def test_in_memory_or_streamed_is_only_the_source(loader: Make, tiny_loaded: LoadedModel) -> None:
    """The same rows in the same order, through broken rows and resumption; latents up to float16."""
    options = {"mixture": ALL, "dropout": Dropout(0.2, 0.2, 0.2, 0.2), "noise_copies": 2}
    held, streamed = loader(stream=False, **options), loader(**options)
    for step in range(6):
        a, b = held.pack(step), streamed.pack(step)
        assert a.unread is None
        read_images(b, tiny_loaded.autoencoder, tiny_loaded.config, torch.Generator())
        assert a.clean_GD is not None and b.clean_GD is not None
        assert torch.allclose(a.clean_GD, b.clean_GD, atol=1e-2)
        assert torch.equal(a.batch.ids_U, b.batch.ids_U) and torch.equal(a.normal_G, b.normal_G)
        assert a.state == b.state and a.modes == b.modes
    assert held.fingerprint == streamed.fingerprint
    again = loader(stream=False, **options)
    again.resume([json.loads(json.dumps(a.state))])
    assert identical(again.pack(6), held.pack(6))


def test_seeds_and_steps_differ(loader: Make) -> None:
    packs, other = loader(mixture=ALL), loader(mixture=ALL, seed=1)
    made = [packs.pack(0), packs.pack(1), other.pack(0)]
    assert len({tuple(pack.normal_G.tolist()) for pack in made}) == 3


def test_budgets(loader: Make) -> None:
    packs = loader(mixture=ALL, tokens_per_pack=300)
    for step in range(10):
        pack = packs.pack(step)
        assert 0.5 * 300 < pack.tokens <= 300 and pack.tokens == len(pack.batch.positions_T)
    assert loader(mixture=ALL, max_tokens_per_sample=60).pack(0).longest <= 60


def test_mandatory_modes_are_in_every_pack(loader: Make) -> None:
    mixture = Mixture(direct=100.0, initial_full=1.0, improving_full=1.0, mandatory=("improving_full", "initial_full"))
    packs = loader(mixture=mixture, stream=False)
    assert all({"improving_full", "initial_full"} <= set(packs.pack(step).modes) for step in range(5))


def test_weights_are_shares(loader: Make) -> None:
    packs = loader(mixture=Mixture(initial_thinking_generation=3.0, direct=1.0), stream=False)
    counts: Counter[str] = Counter()
    for step in range(40):
        counts.update(packs.pack(step).modes)
    assert set(counts) == {"initial_thinking_generation", "direct"}
    assert 0.65 < counts["initial_thinking_generation"] / counts.total() < 0.85


@pytest.mark.parametrize("stream", [True, False])
def test_a_mode_without_rows(loader: Make, tmp_path: Path, stream: bool) -> None:
    write_shards([TrajectoryRecord("p", "t", make_image(0))], tmp_path / "one")
    with pytest.raises(ValueError, match="no trajectory for improving_full; set their weight to 0"):
        loader(data=(str(tmp_path / "one"),), mixture=Mixture(direct=1.0, improving_full=1.0), stream=stream)


@pytest.mark.parametrize("stream", [True, False])
def test_no_sample_fits(loader: Make, stream: bool) -> None:
    with pytest.raises(ValueError, match=r"no row for .* more than max_tokens_per_sample 3"):
        loader(max_tokens_per_sample=3, stream=stream).pack(0)


@pytest.mark.parametrize("stream", [True, False])
def test_rows_of_the_validation_are_not_trained_on(loader: Make, stream: bool) -> None:
    """The last one-turn rows are kept apart; the rest is drawn from."""
    packs = loader(mixture=Mixture(direct=1.0), validate_every=1, validation_rows=1, stream=stream)
    (held,) = packs.held_out()
    drawn = {tuple(row.content["prompt"]) if stream else row.content.prompt for row in packs.sources["one-turn"].in_file_order()}  # type: ignore[index, union-attr]  # fmt: skip # noqa: E501
    assert len(drawn) == 2 and held.prompt == packs.feed.builder.encoder.tokenizer.encode("wide")
    with pytest.raises(ValueError, match="validation_rows 1000 leaves no one-turn row"):
        loader(validate_every=1, validation_rows=1000, stream=stream)


# -------------------------------------------------------------------------------------------------------------- samples


def test_a_sample_token_by_token(
    loader: Make, words: Callable[[str], tuple[int, ...]], tiny_loaded: LoadedModel
) -> None:
    """Mode 6 of a recorded row: what goes in and what is scored."""
    pack = one(loader, "improving_full")
    ids, labels = pack.batch.ids_U.tolist(), pack.labels_L.tolist()
    record = records()[2]
    thought, reflection = words(record.thinking), words(record.reflection or "")
    patches = len(pack.batch.patches_PD)  # type: ignore[arg-type]
    wanted = [
        *(BOS, *words("sys"), EOS),
        *(BOS, *words(record.prompt), EOS),
        *(BOS, *thought, EOS),
        *(START, END),  # latents
        *(START, *[0] * patches, END),
        *(BOS, *reflection, EOS),
        *(START, END),  # the target
    ]
    assert ids == wanted
    assert labels == [*reflection, EOS]
    assert pack.loss_rows_L.tolist() == [len(wanted) - 2 - len(reflection) - 2 + i for i in range(len(reflection) + 1)]
    assert pack.clean_GD is not None
    half = len(pack.clean_GD) // 2  # both images have one size
    assert pack.target_rows_M.tolist() == list(range(half, 2 * half))
    assert torch.isinf(pack.normal_G[:half]).all() and torch.isfinite(pack.normal_G[half:]).all()
    assert len(pack.normal_G[half:].unique()) == 1


def test_noised_copies(loader: Make) -> None:
    """Copies of an image: one content, noise levels of their own."""
    pack = one(loader, "initial_full", noise_copies=3)
    assert pack.clean_GD is not None
    copies = pack.clean_GD.chunk(3)
    assert torch.equal(copies[0], copies[1]) and torch.equal(copies[0], copies[2])
    assert len(pack.normal_G.unique()) == 3
    assert len(pack.target_rows_M) == len(pack.clean_GD)


def test_dropout_leaves_its_gap(loader: Make) -> None:
    """Without its VAE form the image's ViT tokens stand where they stood, and no latents go in."""
    kept, dropped = (
        one(loader, "improving_thinking_generation", dropout=dropout) for dropout in (NO_DROPOUT, Dropout(vae=0.999))
    )
    assert dropped.clean_GD is None and len(dropped.normal_G) == 0
    assert kept.batch.patch_rows_P is not None and dropped.batch.patch_rows_P is not None
    at = [int(p.batch.positions_T[p.batch.patch_rows_P[0]]) for p in (kept, dropped)]  # type: ignore[index]
    assert at[0] == at[1]


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_packs(loader: Make, mode: str) -> None:
    pack = one(loader, mode)
    assert pack.modes == {mode: 1}
    assert (len(pack.target_rows_M) > 0) == (mode.endswith("_full") or mode in ("direct", "unconditional"))
    assert (len(pack.labels_L) > 0) == ("thinking" in mode or mode.endswith("_full"))


# ----------------------------------------------------------------------------------------------------------------- rows


def test_rows_are_held_as_they_were_written(
    rows: Path,
    tmp_path: Path,
    tiny_loaded: LoadedModel,
    encoder: TrajectoryEncoder,
    words: Callable[[str], tuple[int, ...]],
) -> None:
    held = hold_in_memory(sorted(rows.glob("*")), encoder, tiny_loaded.autoencoder, tmp_path / "cache", True)
    wide = held[rows / "part-00001.parquet", 1]
    assert len(held) == 6 and isinstance(wide, EncodedTrajectory) and wide.improved is not None
    assert (wide.prompt, wide.reflection) == (words("wider"), words("make it so"))
    assert wide.image.latent_grid == (2, 3)
    content = wide.image.content
    assert content.patches(encoder.config).shape == (wide.image.patch_grid[0] * wide.image.patch_grid[1], 588)
    with torch.no_grad():
        wanted = tiny_loaded.autoencoder.encode(content.tensor()[None])[0]
    assert torch.allclose(content.latents_Zhw.float(), wanted, atol=1e-2)


def test_latents_are_kept_between_runs(
    rows: Path, tmp_path: Path, tiny_loaded: LoadedModel, encoder: TrajectoryEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One file per shard, as each shard's images are of one size; the second run reads them. Images brought to another
    size have other latents."""
    (tmp_path / "cache").mkdir()
    arguments = (sorted(rows.glob("*")), encoder, tiny_loaded.autoencoder, tmp_path / "cache", True)
    first = hold_in_memory(*arguments)
    assert len(list((tmp_path / "cache").iterdir())) == 2
    with monkeypatch.context() as patch:
        patch.setattr(tiny_loaded.autoencoder, "encode", lambda *_: pytest.fail("encoded again"))
        again = hold_in_memory(*arguments)
    for key, row in first.items():
        assert isinstance(row, EncodedTrajectory)
        assert torch.equal(row.image.content.latents_Zhw, again[key].image.content.latents_Zhw)  # type: ignore[union-attr]
    smaller = replace(encoder.config, vae_resize=replace(encoder.config.vae_resize, max_size=16, min_size=16))
    hold_in_memory(arguments[0], TrajectoryEncoder(smaller, encoder.tokenizer, PROFILE), *arguments[2:])
    assert len(list((tmp_path / "cache").iterdir())) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": ""}, "needs prompt, thinking and image"),
        ({"image": None}, "needs prompt, thinking and image"),
        ({"reflection": None}, "come together or not at all"),
        ({"improved": None}, "come together or not at all"),
    ],
)
def test_half_a_row_is_refused(change: dict[str, None], message: str) -> None:
    whole = TrajectoryRow("p", "t", make_image(0), "r", make_image(1))
    assert TrajectoryRow.from_columns(whole.to_columns()) == whole and [*whole.to_columns()] == [*COLUMNS]
    with pytest.raises(ValueError, match=message):
        TrajectoryRow.from_columns({**whole.to_columns(), **change})


def test_a_broken_image_is_refused_with_its_row(
    tmp_path: Path, tiny_loaded: LoadedModel, encoder: TrajectoryEncoder
) -> None:
    write_shards([TrajectoryRecord("p", "t", make_image(0)[:100])], tmp_path / "bad")
    files = sorted((tmp_path / "bad").glob("*"))
    held = hold_in_memory(files, encoder, tiny_loaded.autoencoder, tmp_path / "cache", True)
    (row,) = trajectory_sources(files, 0, memory=held)["one-turn"].in_file_order()
    with pytest.raises(BadRow, match=r"part-00000\.parquet, row 0: the image cannot be decoded"):
        encoder.trajectory(row)


def test_not_trajectories(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": ["p"]}, pa.schema([SCHEMA.field("prompt")])), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match=r"other\.parquet: not a trajectory parquet file"):
        trajectory_sources([tmp_path / "other.parquet"], 0)
