"""A connector that begins by saying, in the decoder's own words, what the reader sees.

A connector that starts at random has to be learned through the decoder, and a small decoder that can also read latents
never learns it: it drowned the reader's tokens in one large constant instead (rms 30, of which 2.9 told one patch from
another), and read latents only. So the connector starts as the linear map that comes nearest (ridge regression) to the
sum of the word embeddings of what a patch holds: size, color, noun and place of the thing whose center lies in it, and
the image's background; then it is trained alone for a few seconds, to tell these words apart. tanh-GELU passes x
exactly as gelu(x) - gelu(-x), so two layers of width C hold a linear map of rank C / 2.

Legend: P patches; F features of the reader; C decoder width; R rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from irg.model.network.embeddings import Connector
from irg.model.network.unified import UnifiedModel
from irg.model.weights.tokenizer import TextTokenizer
from irg_mini.perception.labeled_images import Pool, Sight, Softening, softened_part, to_batch
from irg_mini.perception.vit import NOTHING, targets_of, to_patches
from irg_mini.world.backgrounds import BACKGROUNDS
from irg_mini.world.classes import COLORS, GRID, SIZES, classes

RIDGE = 1e-2
BACKGROUND = 0.3  # weight of the background's word, which every patch says
TOLD_APART = 0.3  # weight of telling words apart, beside the squared error
GAIN = 3.0  # how loud; regression speaks softly of what it is unsure of, and the table of places is added to it


@dataclass(frozen=True)
class Lesson:
    """Patches of rendered images: what the reader makes of them, and what they should say."""

    features_PF: Tensor
    said_PC: Tensor
    centers_N: Tensor
    """Patches that hold the center of a thing."""
    named: dict[str, tuple[Tensor, Tensor]]
    """For each kind of word: its words [K, C], and which of them each center should say [N]."""


@torch.no_grad()
def fit_connector(model: UnifiedModel, tokenizer: TextTokenizer, vocab: str, pool: Pool, soft: float = 0.5) -> float:
    """Set the connector of a model whose reader is trained.

    Args:
        vocab: of the world's nouns.
        pool: images as large as the reader wants them, ten at least; every tenth only tests.
        soft: share of them that is shifted, blurred and ghosted like a draft.

    Returns:
        The share of things in the test images whose place is the likeliest word of all places.
    """
    learned, test = (
        _lesson(model, tokenizer, vocab, [s for i, s in enumerate(pool.sights) if (i % 10 == 0) == tests], soft)
        for tests in (False, True)
    )
    connector = model.connector
    set_linear(connector, learned.features_PF, learned.said_PC)
    _refine(connector, learned)
    words_KC, which_N = test.named["place"]
    told_N = (connector(test.features_PF[test.centers_N]) @ _apart(words_KC).T).argmax(dim=1)
    connector.fc2.weight.mul_(GAIN)
    connector.fc2.bias.mul_(GAIN)
    return float((told_N == which_N).double().mean())


@torch.no_grad()
def set_linear(connector: Connector, features_PF: Tensor, said_PC: Tensor) -> None:
    """Make a connector the linear map (of rank C / 2 at most) from features to what is to be said that errs least."""
    mean_F, mean_C = features_PF.mean(dim=0).double(), said_PC.mean(dim=0).double()
    x_PF, y_PC = features_PF - mean_F, said_PC - mean_C
    gram_FF = x_PF.T @ x_PF
    gram_FF.diagonal().add_(RIDGE * gram_FF.diagonal().mean())
    map_FC = torch.linalg.solve(gram_FF, x_PF.T @ y_PC)
    # the directions in which the most is said; ever so many patches tell them
    _, _, basis_CC = torch.linalg.svd(x_PF[:: max(1, len(x_PF) // 20_000)] @ map_FC, full_matrices=False)
    kept_RC = basis_CC[: connector.fc1.out_features // 2]
    into_RF = kept_RC @ map_FC.T
    bias_R, r = -(into_RF @ mean_F), len(kept_RC)
    for layer in (connector.fc1, connector.fc2):
        layer.weight.zero_()
        layer.bias.zero_()
    connector.fc1.weight[: 2 * r] = torch.cat([into_RF, -into_RF]).float()
    connector.fc1.bias[: 2 * r] = torch.cat([bias_R, -bias_R]).float()
    connector.fc2.weight[:, : 2 * r] = torch.cat([kept_RC.T, -kept_RC.T], dim=1).float()
    connector.fc2.bias.copy_(mean_C)


@torch.enable_grad()
def _refine(connector: Connector, lesson: Lesson, steps: int = 1200, batch: int = 4096) -> None:
    """Train the connector alone, from the linear map on.

    The squared error alone leaves out what tells a place from the next one: so little of its features, and all of its
    meaning. So every center's words are also told apart, each kind by cross-entropy.
    """
    generator = torch.Generator().manual_seed(1)
    spread = float((lesson.said_PC - lesson.said_PC.mean(dim=0)).square().mean())
    named = [(_apart(words_KC), which_N) for words_KC, which_N in lesson.named.values()]
    optimizer = torch.optim.AdamW(connector.parameters(), lr=1e-3, weight_decay=0.0, betas=(0.9, 0.98))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, (step + 1) / 50, 2 * (steps - step) / steps)
        patches_B = torch.randint(len(lesson.features_PF), (batch,), generator=generator)
        loss = F.mse_loss(connector(lesson.features_PF[patches_B]), lesson.said_PC[patches_B]) / spread
        chosen_B = torch.randint(len(lesson.centers_N), (batch // 4,), generator=generator)
        told_BC = connector(lesson.features_PF[lesson.centers_N[chosen_B]])
        for words_KC, which_N in named:
            loss = loss + TOLD_APART * F.cross_entropy(told_BC @ words_KC.T, which_N[chosen_B])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _apart(words_KC: Tensor) -> Tensor:
    """Words by what tells them from each other."""
    return words_KC - words_KC.mean(dim=0)


def _lesson(model: UnifiedModel, tokenizer: TextTokenizer, vocab: str, sights: Sequence[Sight], soft: float) -> Lesson:
    """The reader's features of all patches of some images, and the summed embeddings of what each patch holds."""
    table = model.language_model.model.embed_tokens.weight
    side = model.config.vit.image_size // model.config.vit.patch_size
    names: dict[str, list[str | None]] = {
        "place": [f"({i % GRID},{i // GRID})" for i in range(GRID**2)],
        "class": [*classes(vocab), None],
        "color": [*COLORS, None],
        "size": [*SIZES],
        "background": [*BACKGROUNDS],
    }
    words = {kind: torch.stack([_word(table, tokenizer, name) for name in some]) for kind, some in names.items()}
    generator = torch.Generator().manual_seed(0)
    features, said, centers = [], [], []
    which: dict[str, list[Tensor]] = {kind: [] for kind in names if kind != "background"}
    for start in range(0, len(sights), 64):
        some = list(sights[start : start + 64])
        x_B3HW = to_batch(some)
        shift = softened_part(x_B3HW, Softening(move=0.02, zoom=0.03), soft, generator)
        answers = targets_of(some, shift, side, vocab)
        answers["place"] = answers["row"] * GRID + answers["col"]
        patches_PD = to_patches(x_B3HW, model.config.vit.patch_size)
        cells_P = torch.arange(side * side).repeat(len(some))
        features.append(model.vit_model(patches_PD, cells_P, [side * side] * len(some)))
        told_PC = BACKGROUND * words["background"][answers["background"]]
        held_P = answers["col"] != NOTHING  # only centers tell
        centers.append(held_P)
        for kind, found in which.items():
            found.append(answers[kind][held_P])
            told_PC[held_P] += words[kind][found[-1]]
        said.append(told_PC)
    named = {kind: (words[kind], torch.cat(found)) for kind, found in which.items()}
    return Lesson(torch.cat(features), torch.cat(said), torch.cat(centers).nonzero().flatten(), named)


def _word(table_VC: Tensor, tokenizer: TextTokenizer, word: str | None) -> Tensor:
    """The embedding of a word as it stands in a sentence; zeros for none."""
    if word is None:
        return torch.zeros_like(table_VC[0])
    return table_VC[list(tokenizer.encode(" " + word))].mean(dim=0)
