"""Training of what looks at images: autoencoder, ViT, detectors."""
