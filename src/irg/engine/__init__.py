"""Running a model: caches, contexts, text decoding, flow sampling, guidance and the batching scheduler."""
