"""From groups of texts with advantages to packs: a sample is a prefix and the texts that continue it.

Legend: L text tokens with loss, text by text: each text's ids, then its eos.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from irg.engine.ops import Written
from irg.learning.data.packing import Attention, Pack, pack_of
from irg.learning.rl.recipe import RLRecipe
from irg.learning.rl.rollouts import Group
from irg.model.network.config import ModelConfig
from irg.sequence.layout import TokenLayout, lay_out
from irg.sequence.parts import Part, Text


@dataclass
class Learned:
    """The texts of a group that are learned from, and their advantages."""

    group: Group
    texts: list[Written]
    advantages: list[float]

    @property
    def parts(self) -> list[Part]:
        """The sample: the prefix once, and every text behind it."""
        return [*self.group.prefix, *(Text(text.ids, loss=True, sibling=True) for text in self.texts)]


@dataclass
class PolicyPack:
    """A pack of samples, and what the policy's loss needs for each of its text tokens.

    Attributes:
        weights_L: 0 where the model did not choose the token (the end of a text that was cut off); else 1, or for
            averages over sequences 1 / the text's chosen tokens.
        rollout_L: log-probabilities that the engine reported; 0 where the weight is.
        texts: how many there are.
        old_L, reference_L: log-probabilities before the first update, and of the reference, once they are known.
    """

    pack: Pack
    advantages_L: Tensor
    weights_L: Tensor
    rollout_L: Tensor
    texts: int
    old_L: Tensor | None = None
    reference_L: Tensor | None = None

    @property
    def chosen(self) -> int:
        """Tokens that the model chose."""
        return int((self.weights_L > 0).sum())

    def counts(self, average: str) -> tuple[int, int]:
        """What the weighted sums over tokens of texts and of targets are divided by for a mean."""
        return (self.texts if average == "sequence" else self.chosen), 0


def learned(
    groups: Sequence[Group], advantages: Sequence[Sequence[float | None]], skip_equal: bool = True
) -> list[Learned]:
    """What is learned from: texts with an advantage, in groups that have some; without those whose advantages are all
    0 if they are to be skipped."""
    found = []
    for group, values in zip(groups, advantages, strict=True):
        kept = [(text, value) for text, value in zip(group.texts, values, strict=True) if value is not None]
        if kept and not (skip_equal and all(value == 0 for _, value in kept)):
            found.append(Learned(group, [text for text, _ in kept], [value for _, value in kept]))
    return found


def policy_packs(
    samples: Sequence[Learned], recipe: RLRecipe, config: ModelConfig, attention: Attention
) -> list[PolicyPack]:
    """Pack samples in order, as many in one pack as ``tokens_per_pack`` allows (at least one)."""
    layouts = [lay_out(sample.parts, config.grammar) for sample in samples]
    found = []
    for members in filled([len(layout) for layout in layouts], recipe.tokens_per_pack):
        some = [samples[i] for i in members]
        found.append(_policy_pack(some, [layouts[i] for i in members], recipe.loss.average, config, attention))
    return found


def filled(lengths: Sequence[int], room: int) -> Iterator[list[int]]:
    """Samples of these lengths in order, by their numbers, as many in each list as there is room for (at least one)."""
    members: list[int] = []
    for index, length in enumerate(lengths):
        if members and sum(lengths[i] for i in members) + length > room:
            yield members
            members = []
        members.append(index)
    if members:
        yield members


def _policy_pack(
    samples: Sequence[Learned],
    layouts: Sequence[TokenLayout],
    average: str,
    config: ModelConfig,
    attention: Attention,
) -> PolicyPack:
    pack = pack_of([sample.parts for sample in samples], layouts, config, _no_target, (), attention)
    texts = [pair for sample in samples for pair in zip(sample.texts, sample.advantages, strict=True)]
    return policy_pack_of(pack, texts, average)


def policy_pack_of(pack: Pack, texts: Sequence[tuple[Written, float]], average: str) -> PolicyPack:
    """A pack's texts with loss, in order, each with its advantage, as the policy's loss needs them."""
    advantages, weights, rollout = list[np.ndarray](), list[np.ndarray](), list[np.ndarray]()
    for text, advantage in texts:
        tokens, chosen = len(text.ids) + 1, len(text.logprobs)
        assert chosen == tokens - (not text.complete)
        weight = 1.0 / max(1, chosen) if average == "sequence" else 1.0
        advantages.append(np.full(tokens, advantage))
        weights.append(np.array([weight] * chosen + [0.0] * (tokens - chosen)))
        rollout.append(np.array([*text.logprobs, *[0.0] * (tokens - chosen)]))
    columns = (torch.from_numpy(np.concatenate(c)).to(torch.float32) for c in (advantages, weights, rollout))
    advantages_L, weights_L, rollout_L = columns
    assert len(advantages_L) == len(pack.labels_L)
    return PolicyPack(pack, advantages_L, weights_L, rollout_L, len(texts))


def _no_target() -> float:
    raise AssertionError("texts alone are learned: no image is noised")
