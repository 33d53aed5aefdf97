"""From rows on disk to packs: rows, learning modes, packing, in memory or streamed."""
