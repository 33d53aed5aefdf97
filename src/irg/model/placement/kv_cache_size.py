"""How large the key-value cache becomes: the engine allocates by these rules, and the memory plan counts by them.

A request tells its length beforehand, as :func:`request_slots` counts it, so its rows are allocated once. What nobody
told, or a longer text, makes rows grow as :func:`grown` says.
"""

from enum import IntEnum

from irg.model.network.config import DecoderConfig, ModelConfig


class RowKind(IntEnum):
    """What a row is for: the main context, and the unconditional text and image branches. A request has one of each."""

    MAIN = 0
    TEXT_FREE = 1
    IMAGE_FREE = 2


INITIAL_SLOTS = 512  # where no length is known
GROWTH = 2048
EXPECTED_TEXT_TOKENS = 300  # of a thinking text: what it may have at most is often far more than models write


def grown(slots: int, needed: int) -> int:
    """Slots of a row that had ``slots`` and needs more: doubled, but by at most :data:`GROWTH` beyond the need.

    Short rows grow in few steps; long ones, which are gigabytes, do not reserve as much again.
    """
    return max(needed, min(2 * slots, slots + GROWTH) if slots else INITIAL_SLOTS)


def request_slots(
    config: ModelConfig, said: int, text: int, texts: int, looks: int, height: int, width: int
) -> tuple[int, ...]:
    """Slots of a request's rows, by :class:`RowKind`; 0: it needs none of this kind.

    The main row ends with everything that is said, written and looked at, and the image drawn last. The text-free one
    lacks at least the text written last, the image-free one everything looked at.

    Args:
        said: tokens of what is said, those around each text included.
        text, texts: tokens of a text that the model writes, and how many it writes.
        looks: images that it looks at, each through the autoencoder and the ViT.
        height, width: of all images, in pixels.
    """
    drawn = (height // config.image_stride) * (width // config.image_stride) + 2
    patch = config.vit.patch_size
    seen_width, seen_height = config.vit_resize.size(width, height)
    read = looks * (drawn + (seen_width // patch) * (seen_height // patch) + 2)
    written = texts * (text + 2)
    main = said + written + read + drawn
    return main, main - min(texts, 1) * (text + 2), (main - read) if looks else 0


def bytes_per_slot(decoder: DecoderConfig, itemsize: int) -> int:
    """Bytes of one token's keys and values in all layers."""
    return 2 * decoder.num_hidden_layers * decoder.num_key_value_heads * decoder.head_dim * itemsize
