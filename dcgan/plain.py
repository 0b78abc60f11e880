"""The training loop as a tutorial writes it: what `dcgan.bench` times this package's loop against.

It has a DataLoader with workers, ToTensor and Normalize, zero_grad, three backward passes, and
`.item()` each step; it trains one seed, with Adam and the non-saturating loss.

Shapes: N images, C channels, S pixels a side.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from dcgan import precision
from dcgan.config import TrainConfig
from dcgan.data import load_split
from dcgan.models import build


class Images(Dataset[tuple[Tensor, int]]):
    """A split as torchvision's data sets give it: Pillow images, transformed one by one."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        from torchvision import transforms

        self.pixels = images.permute(0, 2, 3, 1).squeeze(3).contiguous().numpy()  # (N, S, S[, C])
        self.labels = labels
        normalize = transforms.Normalize((0.5,), (0.5,))
        self.transform = transforms.Compose([transforms.ToTensor(), normalize])

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.pixels[i])), int(self.labels[i])


def plain(config: TrainConfig, data_dir: Path | None, device: torch.device) -> Iterator[None]:
    """A tutorial's loop of a config: each step trains a batch, without end."""
    split = load_split(config.source(data_dir, torch.device("cpu")), "train")
    loader = DataLoader(
        Images(*split),
        config.batch_size,
        shuffle=True,
        num_workers=2,
        drop_last=True,
        persistent_workers=True,
    )
    netG, netD = (net.to(device) for net in build([config]))
    criterion = nn.BCEWithLogitsLoss()
    betas = (config.beta1, config.beta2)
    optimizerG = torch.optim.Adam(netG.parameters(), lr=config.generator_lr, betas=betas)
    optimizerD = torch.optim.Adam(netD.parameters(), lr=config.discriminator_lr, betas=betas)
    scalerG = precision.scaler(config.precision, device)
    scalerD = precision.scaler(config.precision, device)
    losses: list[tuple[float, ...]] = []

    while True:
        for data, _ in loader:
            netD.zero_grad()
            real = data.to(device)
            label = torch.full((len(real),), 1.0, device=device)
            with precision.autocast(config.precision, device):
                output = netD(real).view(-1)
                errD_real = criterion(output, label)
            scalerD.scale(errD_real).backward()
            D_x = output.mean().item()
            noise = torch.randn(len(real), config.latent_size, device=device)
            with precision.autocast(config.precision, device):
                fake = netG(noise)
                output = netD(fake.detach()).view(-1)
                errD_fake = criterion(output, label.fill_(0.0))
            scalerD.scale(errD_fake).backward()
            D_G_z1 = output.mean().item()
            scalerD.step(optimizerD)
            scalerD.update()
            netG.zero_grad()
            with precision.autocast(config.precision, device):
                output = netD(fake).view(-1)
                errG = criterion(output, label.fill_(1.0))
            scalerG.scale(errG).backward()
            scalerG.step(optimizerG)
            scalerG.update()
            losses.append((errG.item(), (errD_real + errD_fake).item(), D_x, D_G_z1))
            yield
