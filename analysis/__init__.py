"""The answer: results as pandas frames, and the tables made from them. Reads files only; needs
neither Ray nor PyTorch."""
