"""Special tokens and the sizes of the position tables: what the grammar needs to know about a model."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SpecialTokens:
    """Token ids that wrap texts (``bos``, ``eos``) and images (``start_of_image``, ``end_of_image``)."""

    bos: int
    eos: int
    start_of_image: int
    end_of_image: int


@dataclass(frozen=True)
class Grammar:
    """Everything about a model that the layout of a sequence depends on.

    ``latent_side`` and ``patch_side`` are the rows and columns of the 2-D position tables for latent tokens and ViT
    patches: an image may not have more tokens than that on a side.
    """

    special: SpecialTokens
    latent_side: int
    patch_side: int
