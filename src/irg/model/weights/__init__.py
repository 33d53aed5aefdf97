"""Model folders in and out: configuration, weights, tokenizer, conversion, quantization, the hub."""
