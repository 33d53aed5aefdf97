"""From siblings with advantages to packs: a sample is a sibling's whole trajectory, the shared first turn included."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from irg.learning.data.packing import Attention, Pack, pack_of
from irg.learning.data.samples import ImageContent, TrajectoryEncoder
from irg.learning.rl.drawings import DrawingPack, drawing_pack_of, targets_of
from irg.learning.rl.packs import PolicyPack, filled, policy_pack_of
from irg.learning.rl.recipe import RLRecipe
from irg.learning.rl.trajectories import Round, TrajectoryGroup
from irg.model.network.autoencoder import Autoencoder
from irg.results.folder import encode_png
from irg.sequence.layout import lay_out
from irg.sequence.parts import Latents, Part, Text


@dataclass
class LearnedTrajectory:
    """A sibling that is learned from.

    Attributes:
        text_advantages: of every text; that of a malformed one is lower than ``advantage``.
        advantage: of every image.
    """

    prefix: list[Part]
    rounds: list[Round]
    text_advantages: list[float]
    advantage: float

    def parts(self, encoder: TrajectoryEncoder, copies: int) -> list[Part]:
        """The sample: each image is drawn at ``copies`` noise levels, then, unless it is the last, looked at."""
        parts = list(self.prefix)
        for number, one in enumerate(self.rounds):
            parts.append(Text(one.text.ids, loss=True))
            if one.drawn is None:
                break
            parts += targets_of(one.drawn, encoder.config, copies)
            if number + 1 < len(self.rounds):
                parts += encoder.image(encode_png(one.drawn.image, {}), "an image of a rollout").as_context()
        return parts


@dataclass
class TrajectoryPack:
    """One pack, as the texts' loss and as the images' loss need it."""

    text: PolicyPack
    flow: DrawingPack

    @property
    def pack(self) -> Pack:
        """The pack itself."""
        return self.text.pack

    def to(self, device: torch.device) -> None:
        """Move the pack."""
        self.flow.to(device)
        self.text.pack = self.flow.pack

    def counts(self, average: str) -> tuple[int, int]:
        """What the sums over tokens of texts and of targets are divided by for a mean."""
        return self.text.counts(average)[0], self.flow.counts(average)[1]


def learned_trajectories(
    groups: Sequence[TrajectoryGroup],
    advantages: Sequence[Sequence[float | None]],
    malformed: Sequence[Sequence[Sequence[bool]]],
    recipe: RLRecipe,
) -> list[LearnedTrajectory]:
    """What is learned from: siblings with an advantage; without groups whose advantages are all 0 if these are to be
    skipped, unless a text in them is malformed. The advantage of a malformed text is min(A, 0) - ``malformed_penalty``;
    other texts and the images of its trajectory keep A."""
    found, penalty = list[LearnedTrajectory](), recipe.advantage.malformed_penalty
    for group, values, wrong in zip(groups, advantages, malformed, strict=True):
        if recipe.skip_equal_groups and not any(values) and not any(map(any, wrong)):
            continue
        for rounds, value, bad in zip(group.siblings, values, wrong, strict=True):
            if value is not None:
                texts = [min(value, 0.0) - penalty if one else value for one in bad]
                found.append(LearnedTrajectory(group.prefix, rounds, texts, value))
    return found


def trajectory_packs(
    samples: Sequence[LearnedTrajectory],
    recipe: RLRecipe,
    encoder: TrajectoryEncoder,
    autoencoder: Autoencoder,
    normal: Callable[[], float],
    attention: Attention,
) -> list[TrajectoryPack]:
    """Pack samples in order, as many in one pack as ``tokens_per_pack`` allows (at least one)."""
    copies, config, average = recipe.noise_copies, encoder.config, recipe.loss.average
    parts = [sample.parts(encoder, copies) for sample in samples]
    read_context(parts, autoencoder)
    layouts = [lay_out(some, config.grammar) for some in parts]
    found = []
    for members in filled([len(layout) for layout in layouts], recipe.tokens_per_pack):
        pack = pack_of([parts[i] for i in members], [layouts[i] for i in members], config, normal, (), attention)
        some = [samples[i] for i in members]
        texts = [(one.text, a) for s in some for one, a in zip(s.rounds, s.text_advantages, strict=True)]
        drawings = [(one.drawn, s.advantage) for s in some for one in s.rounds if one.drawn is not None]
        found.append(TrajectoryPack(policy_pack_of(pack, texts, average), drawing_pack_of(pack, drawings, copies)))
    return found


@torch.no_grad()
def read_context(samples: Sequence[Sequence[Part]], autoencoder: Autoencoder) -> None:
    """Let the autoencoder read the images that samples look at, each once: targets have their latents already."""
    weight = next(autoencoder.parameters())
    images = {id(part.content): part.content for parts in samples for part in parts if isinstance(part, Latents)}
    for content in images.values():
        assert isinstance(content, ImageContent)
        if content.latents_Zhw is None:
            pixels_13HW = content.tensor()[None].to(weight.device, weight.dtype)
            content.latents_Zhw = autoencoder.encode(pixels_13HW)[0].to("cpu", torch.float32)
