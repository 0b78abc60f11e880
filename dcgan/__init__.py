"""DCGAN on small images: config, data, models, training loop, checkpoints and metrics, in plain PyTorch."""
