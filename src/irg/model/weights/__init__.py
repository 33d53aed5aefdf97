"""Model folders in and out: configuration, weights, tokenizer, conversion, quantisation, the hub."""
