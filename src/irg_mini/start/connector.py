"""The initial connector: each patch is mapped to the decoder's embeddings of the words for what it holds.

A connector that starts at random has to be learned through the decoder, and a small decoder that can also read latents
never learns it: training drowned the ViT's tokens in one large constant (rms 30, of which 2.9 distinguished one patch
from another), and the decoder read latents only. So the connector starts as the linear map that comes nearest (ridge
regression) to the sum of the word embeddings of what a patch holds: size, color, noun and place of the thing whose
center lies in it, and the image's background; then it is trained alone for a few seconds, to classify these words.
tanh-GELU passes x exactly as gelu(x) - gelu(-x), so two layers of width C hold a linear map of rank C / 2.

Legend: P patches; F features of the ViT; C decoder width; R rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from irg.model.network.embeddings import Connector
from irg.model.network.unified import UnifiedModel
from irg.model.weights.tokenizer import TextTokenizer
from irg_mini.perception.labeled_images import Augmentation, LabeledImage, Pool, augmented_part, to_batch
from irg_mini.perception.vit import NOTHING, targets_of, to_patches
from irg_mini.world.backgrounds import BACKGROUNDS
from irg_mini.world.classes import COLORS, GRID, SIZES, classes

RIDGE = 1e-2
BACKGROUND = 0.3  # weight of the background's word, which is a target of every patch
CLASSIFICATION = 0.3  # weight of the cross-entropy of words, beside the squared error
GAIN = 3.0  # regression shrinks what is uncertain, and the table of places is added to the output


@dataclass(frozen=True)
class Patches:
    """Patches of rendered images: their features and the embeddings that they should be mapped to."""

    features_PF: Tensor
    targets_PC: Tensor
    centers_N: Tensor
    """Patches that hold the center of a thing."""
    named: dict[str, tuple[Tensor, Tensor]]
    """For each kind of word: its words' embeddings [K, C], and which of them is right for each center [N]."""


@torch.no_grad()
def fit_connector(
    model: UnifiedModel, tokenizer: TextTokenizer, vocab: str, pool: Pool, augmented: float = 0.5, steps: int = 1200
) -> float:
    """Set the connector of a model whose ViT is trained.

    Args:
        vocab: of the world's nouns.
        pool: images of the ViT's size, ten at least; every tenth is only for testing.
        augmented: share of them that is shifted, blurred and ghosted like a draft.
        steps: of training after the linear map.

    Returns:
        The share of things in the test images whose place is the likeliest word of all places.
    """
    learned, test = (
        _patches(model, tokenizer, vocab, [s for i, s in enumerate(pool.examples) if (i % 10 == 0) == tests], augmented)
        for tests in (False, True)
    )
    connector = model.connector
    set_linear(connector, learned.features_PF, learned.targets_PC)
    _refine(connector, learned, steps)
    words_KC, which_N = test.named["place"]
    predicted_N = (connector(test.features_PF[test.centers_N]) @ _centered(words_KC).T).argmax(dim=1)
    connector.fc2.weight.mul_(GAIN)
    connector.fc2.bias.mul_(GAIN)
    return float((predicted_N == which_N).double().mean())


@torch.no_grad()
def set_linear(connector: Connector, features_PF: Tensor, targets_PC: Tensor) -> None:
    """Make a connector the linear map (of rank C / 2 at most) from features to targets with the least squared error."""
    mean_F, mean_C = features_PF.mean(dim=0).double(), targets_PC.mean(dim=0).double()
    x_PF, y_PC = features_PF - mean_F, targets_PC - mean_C
    gram_FF = x_PF.T @ x_PF
    gram_FF.diagonal().add_(RIDGE * gram_FF.diagonal().mean())
    map_FC = torch.linalg.solve(gram_FF, x_PF.T @ y_PC)
    # the directions of the largest outputs; 20,000 patches are enough to find them
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
def _refine(connector: Connector, patches: Patches, steps: int, batch: int = 4096) -> None:
    """Train the connector alone, from the linear map on.

    The squared error alone ignores what distinguishes a place from the next one, which is a small part of the features.
    So every center's words are also classified, each kind by cross-entropy.
    """
    generator = torch.Generator().manual_seed(1)
    spread = float((patches.targets_PC - patches.targets_PC.mean(dim=0)).square().mean())
    named = [(_centered(words_KC), which_N) for words_KC, which_N in patches.named.values()]
    optimizer = torch.optim.AdamW(connector.parameters(), lr=1e-3, weight_decay=0.0, betas=(0.9, 0.98))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, (step + 1) / 50, 2 * (steps - step) / steps)
        patches_B = torch.randint(len(patches.features_PF), (batch,), generator=generator)
        loss = F.mse_loss(connector(patches.features_PF[patches_B]), patches.targets_PC[patches_B]) / spread
        chosen_B = torch.randint(len(patches.centers_N), (batch // 4,), generator=generator)
        predicted_BC = connector(patches.features_PF[patches.centers_N[chosen_B]])
        for words_KC, which_N in named:
            loss = loss + CLASSIFICATION * F.cross_entropy(predicted_BC @ words_KC.T, which_N[chosen_B])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _centered(words_KC: Tensor) -> Tensor:
    """Embeddings minus their mean: what distinguishes them."""
    return words_KC - words_KC.mean(dim=0)


def _patches(
    model: UnifiedModel, tokenizer: TextTokenizer, vocab: str, examples: Sequence[LabeledImage], augmented: float
) -> Patches:
    """The ViT's features of all patches of some images, and the summed embeddings of what each patch holds."""
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
    features, targets, centers = [], [], []
    which: dict[str, list[Tensor]] = {kind: [] for kind in names if kind != "background"}
    for start in range(0, len(examples), 64):
        some = list(examples[start : start + 64])
        x_B3HW = to_batch(some)
        shift = augmented_part(x_B3HW, Augmentation(move=0.02, zoom=0.03), augmented, generator)
        answers = targets_of(some, shift, side, vocab)
        answers["place"] = answers["row"] * GRID + answers["col"]
        patches_PD = to_patches(x_B3HW, model.config.vit.patch_size)
        cells_P = torch.arange(side * side).repeat(len(some))
        features.append(model.vit_model(patches_PD, cells_P, [side * side] * len(some)))
        targets_PC = BACKGROUND * words["background"][answers["background"]]
        center_P = answers["col"] != NOTHING
        centers.append(center_P)
        for kind, found in which.items():
            found.append(answers[kind][center_P])
            targets_PC[center_P] += words[kind][found[-1]]
        targets.append(targets_PC)
    named = {kind: (words[kind], torch.cat(found)) for kind, found in which.items()}
    return Patches(torch.cat(features), torch.cat(targets), torch.cat(centers).nonzero().flatten(), named)


def _word(table_VC: Tensor, tokenizer: TextTokenizer, word: str | None) -> Tensor:
    """The embedding of a word as it stands in a sentence; zeros for none."""
    if word is None:
        return torch.zeros_like(table_VC[0])
    return table_VC[list(tokenizer.encode(" " + word))].mean(dim=0)
