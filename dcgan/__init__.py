"""DCGAN on small images: config, data, models, training loop and metrics, in plain PyTorch."""
