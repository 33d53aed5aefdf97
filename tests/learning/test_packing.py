"""From rows to packs."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from irg.curation.records import SCHEMA, TrajectoryRecord, write_shards
from irg.learning.data.in_memory import TrajectoryData
from irg.learning.data.packing import Pack, Packer
from irg.learning.data.rows import read_rows
from irg.learning.modes import MODES
from irg.learning.recipe import Dropout, Mixture
from irg.model.weights.checkpoint import LoadedModel
from irg.model.weights.tokenizer import TextTokenizer

from .conftest import PROFILE, make_image

BOS, EOS, START, END = 256, 257, 258, 259
ALL = Mixture(*[1.0] * 8)
NO_DROPOUT = Dropout(vae=0.0)


def packer(
    data: TrajectoryData, mixture: Mixture = ALL, dropout: Dropout = NO_DROPOUT, seed: int = 0, **options: int
) -> Packer:
    budgets = {"tokens_per_pack": 300, "max_tokens_per_sample": 200, **options}
    return Packer(data, data.config.grammar, mixture, dropout, seed, **budgets)  # type: ignore[arg-type]


def tensors(pack: Pack) -> dict[str, Tensor]:
    found = {**vars(pack.batch), **vars(pack)}
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def one(data: TrajectoryData, mode: str, **options: int) -> Pack:
    """A pack of one sample: a budget that a second does not fit into."""
    return packer(data, Mixture(**{mode: 1.0}, mandatory=(mode,)), tokens_per_pack=1, **options).pack(0)


# ---------------------------------------------------------------------------------------------------------------- packs


def test_a_step_is_always_the_same_pack(data: TrajectoryData) -> None:
    """Whatever was packed before; and seeds and steps differ."""
    first, again = packer(data, dropout=Dropout(0.2, 0.2, 0.2)), packer(data, dropout=Dropout(0.2, 0.2, 0.2))
    for step in range(3):
        again.pack(step)
    a, b = tensors(first.pack(7)), tensors(again.pack(7))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    others = [first.pack(8), packer(data, dropout=Dropout(0.2, 0.2, 0.2), seed=1).pack(7)]
    assert all(tensors(pack)["normal_G"].tolist() != a["normal_G"].tolist() for pack in others)


def test_budgets(data: TrajectoryData) -> None:
    for step in range(10):
        pack = packer(data).pack(step)
        assert 0.5 * 300 < pack.tokens <= 300
        assert pack.tokens == len(pack.batch.positions_T)
        assert sum(pack.modes.values()) == sum(rows for (rows, _), _ in pack.attend.batches)
    assert all(slots <= 60 for (_, slots), _ in packer(data, max_tokens_per_sample=60).pack(0).attend.batches)


def test_mandatory_modes_are_in_every_pack(data: TrajectoryData) -> None:
    mixture = Mixture(direct=100.0, initial_full=1.0, improving_full=1.0, mandatory=("improving_full", "initial_full"))
    for step in range(5):
        pack = packer(data, mixture).pack(step)
        assert set(list(pack.modes)[:2]) == {"improving_full", "initial_full"}


def test_weights_are_shares(data: TrajectoryData) -> None:
    mixture = Mixture(initial_thinking_generation=3.0, direct=1.0)
    counts: Counter[str] = Counter()
    for step in range(40):
        counts.update(packer(data, mixture).pack(step).modes)
    assert set(counts) == {"initial_thinking_generation", "direct"}
    assert 0.65 < counts["initial_thinking_generation"] / counts.total() < 0.85


def test_a_mode_without_rows(tmp_path: Path, tiny_loaded: LoadedModel, tiny_tokenizer: TextTokenizer) -> None:
    write_shards([TrajectoryRecord("p", "t", make_image(0))], tmp_path / "one")
    data = TrajectoryData([str(tmp_path / "one")], tiny_tokenizer, tiny_loaded.config, PROFILE, tiny_loaded.autoencoder)
    with pytest.raises(ValueError, match="no trajectory for improving_full; set their weight to 0"):
        packer(data, Mixture(direct=1.0, improving_full=1.0))


def test_no_sample_fits(data: TrajectoryData) -> None:
    with pytest.raises(ValueError, match="tokens_per_pack 300, max_tokens_per_sample 3; raise them"):
        packer(data, max_tokens_per_sample=3).pack(0)


# -------------------------------------------------------------------------------------------------------------- samples


def test_a_sample_token_by_token(data: TrajectoryData, words: Callable[[str], tuple[int, ...]]) -> None:
    """Mode 6 of a recorded row: what goes in and what is scored."""
    pack = one(data, "improving_full")
    ids, labels = pack.batch.ids_U.tolist(), pack.labels_L.tolist()
    row = next(i for i in data.rows_for("improving_full") if (BOS, *data.prompts[i], EOS) == tuple(ids[5:])[: len(data.prompts[i]) + 2])  # fmt: skip # noqa: E501
    thought, reflection = data.thinking[row], data.reflections[row]
    patches = len(pack.batch.patches_PD)  # type: ignore[arg-type]
    wanted = [
        *(BOS, *words("sys"), EOS),
        *(BOS, *data.prompts[row], EOS),
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
    first = int(data.first_image[row])
    assert torch.equal(pack.clean_GD, torch.cat([data.latents(first), data.latents(first + 1)]).float())
    assert torch.equal(pack.batch.patches_PD, data.patches(first))  # type: ignore[arg-type]


def test_noised_copies(data: TrajectoryData) -> None:
    """Copies of an image: one content, noise levels of their own."""
    pack = one(data, "initial_full", noise_copies=3)
    assert pack.clean_GD is not None
    copies = pack.clean_GD.chunk(3)
    assert torch.equal(copies[0], copies[1]) and torch.equal(copies[0], copies[2])
    assert len(pack.normal_G.unique()) == 3
    assert len(pack.target_rows_M) == len(pack.clean_GD)


def test_dropout_leaves_its_gap(data: TrajectoryData) -> None:
    """Without its VAE form the image's ViT tokens stand where they stood, and no latents go in."""
    mixture = Mixture(improving_thinking_generation=1.0, mandatory=("improving_thinking_generation",))
    kept, dropped = (
        packer(data, mixture, dropout, tokens_per_pack=1).pack(3) for dropout in (NO_DROPOUT, Dropout(vae=0.999))
    )
    assert dropped.clean_GD is None and len(dropped.normal_G) == 0
    assert kept.batch.patch_rows_P is not None and dropped.batch.patch_rows_P is not None
    at = [int(p.batch.positions_T[p.batch.patch_rows_P[0]]) for p in (kept, dropped)]  # type: ignore[index]
    assert at[0] == at[1]


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_packs(data: TrajectoryData, mode: str) -> None:
    pack = one(data, mode)
    assert pack.modes == {mode: 1}
    assert (len(pack.target_rows_M) > 0) == (mode.endswith("_full") or mode in ("direct", "unconditional"))
    assert (len(pack.labels_L) > 0) == ("thinking" in mode or mode.endswith("_full"))


# ----------------------------------------------------------------------------------------------------------------- rows


def test_rows_are_read_as_they_were_written(data: TrajectoryData, words: Callable[[str], tuple[int, ...]]) -> None:
    assert len(data) == 6 and data.two_turns.tolist() == [False, False, True, True, False, True]
    assert data.rows_for("initial_full").tolist() == [0, 1, 4]
    assert data.rows_for("improving_thinking_generation").tolist() == [2, 3, 5]
    wide = data.trajectory(5)
    assert (wide.prompt, wide.reflection) == (words("wider"), words("make it so"))
    assert wide.image.latent_grid == (2, 3) and wide.improved is not None and wide.improved.key == wide.image.key + 1
    assert data.latents(wide.image.key).shape == (6, 48)
    assert data.patches(wide.image.key).shape == (wide.image.patch_grid[0] * wide.image.patch_grid[1], 588)


def test_latents_are_those_of_the_autoencoder(data: TrajectoryData, tiny_loaded: LoadedModel) -> None:
    from irg.sequence.images import patchify, to_tensor

    with torch.no_grad():
        wanted = tiny_loaded.autoencoder.encode(to_tensor(Image.fromarray(data.pixels[0]))[None])[0]
    assert torch.allclose(data.latents(0).float(), patchify(wanted, 2), atol=1e-2)


def test_latents_are_kept_between_runs(
    rows: Path, tmp_path: Path, tiny_loaded: LoadedModel, tiny_tokenizer: TextTokenizer
) -> None:
    """One file per shard, as each shard's images are of one size; the second run reads them."""
    first, again = (
        TrajectoryData(
            [str(rows)], tiny_tokenizer, tiny_loaded.config, PROFILE, tiny_loaded.autoencoder, tmp_path / "cache"
        )
        for _ in range(2)
    )
    assert len(list((tmp_path / "cache").iterdir())) == 2
    keys = range(len(first.pixels))
    assert all(torch.equal(first.latents(key), again.latents(key)) for key in keys)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": ""}, "needs prompt, thinking and image"),
        ({"image": None}, "needs prompt, thinking and image"),
        ({"reflection": None}, "come together or not at all"),
        ({"improved": None}, "come together or not at all"),
    ],
)
def test_half_a_row_is_an_error(tmp_path: Path, change: dict[str, None], message: str) -> None:
    good = TrajectoryRecord("p", "t", make_image(0), "r", make_image(1)).to_row()
    file = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([good, {**good, **change}], SCHEMA), file)
    with pytest.raises(ValueError, match=rf"rows\.parquet, row 1: .*{message}"):
        list(read_rows([file]))


def test_a_broken_image_is_an_error(tmp_path: Path, tiny_loaded: LoadedModel, tiny_tokenizer: TextTokenizer) -> None:
    write_shards([TrajectoryRecord("p", "t", make_image(0)[:100])], tmp_path / "bad")
    with pytest.raises(ValueError, match=r"part-00000\.parquet, row 0: the image cannot be decoded"):
        TrajectoryData([str(tmp_path / "bad")], tiny_tokenizer, tiny_loaded.config, PROFILE, tiny_loaded.autoencoder)


def test_not_trajectories(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": np.array(["p"])}), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match=r"other\.parquet: not a trajectory parquet file"):
        list(read_rows([tmp_path / "other.parquet"]))
