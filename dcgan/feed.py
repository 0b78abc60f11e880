"""Training images where an update reads them: all on the device, or batch by batch.

Shapes: N images, B batches, L lanes.
"""

import torch
from torch import Tensor

from dcgan.data import Split


class Feed:
    """A split's images and labels on a device. Of images that do not fit there, those of the next
    batches are copied into a buffer, which a captured update reads again and again."""

    def __init__(self, split: Split, device: torch.device, buffered: int) -> None:
        """`buffered`: images that are asked for at a time, at most."""
        self.split, self.device = split, device
        self.whole = split.images.device.type == device.type
        self.images, self.labels = split
        if not self.whole:
            shape = (buffered, *split.images.shape[1:])
            self.images = torch.empty(shape, dtype=torch.uint8, device=device)
            self.labels = torch.empty(buffered, dtype=torch.int64, device=device)

    def fetch(self, index: Tensor) -> Tensor:
        """Has the images at index (B, N, L) of the split on the device; returns where they are in
        `images` (B, N, L)."""
        if self.whole:
            return index
        wanted, count = index.flatten(), index.numel()
        # waits for the updates that still read the buffer, since the index was drawn after them
        self.images[:count] = self.split.images[wanted.cpu()].to(self.device)
        self.labels[:count] = self.split.labels[wanted]
        return torch.arange(count, device=self.device).view_as(index)
