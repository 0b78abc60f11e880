"""How every yardstick is trained: the shipped one by its command, others as they are needed.

Shapes: N images, C channels, S pixels a side.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcgan.data import Split, to_unit_range

Net = TypeVar("Net", bound=nn.Module)

TURNS = 4  # classes of a data set without labels: by quarters of a turn
RECIPE: dict[str, Any] = {"epochs": 12, "batch_size": 128, "learning_rate": 4e-3, "seed": 0}
LEAST_UPDATES, MOST_UPDATES = 600, 2400  # of a small, or large, data set: in more or fewer epochs


def recipe_for(images: int) -> dict[str, Any]:
    """The recipe for a training split of so many images."""
    batch = min(RECIPE["batch_size"], images)
    updates = images // batch  # of an epoch
    most = max(1, MOST_UPDATES // updates)
    epochs = max(min(RECIPE["epochs"], most), -(-LEAST_UPDATES // updates))
    return {**RECIPE, "batch_size": batch, "epochs": epochs}


def augment(images: Tensor, rng: torch.Generator) -> Tensor:
    """Random turns (to 15 degrees), scales (0.85 to 1.15) and shifts (to a tenth of a side) of
    images (N, C, S, S)."""
    n = len(images)
    drawn = torch.rand(4, n, generator=rng, device=images.device).mul_(2).sub_(1)  # (4, N)
    angle = drawn[0] * torch.pi / 12
    scale = 1 + 0.15 * drawn[1]
    dx, dy = drawn[2], drawn[3]
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rows = [torch.stack([cos, -sin, 0.2 * dx], 1), torch.stack([sin, cos, 0.2 * dy], 1)]
    size = list(images.shape)
    grid = F.affine_grid(torch.stack(rows, 1), size, align_corners=False)  # (N, S, S, 2)
    return F.grid_sample(images + 1, grid, align_corners=False) - 1  # background is -1, padding 0


def turn(images: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images (N, C, S, S), each turned by a random number of quarters, and these numbers (N,)."""
    quarters = torch.randint(TURNS, (len(images),), generator=rng, device=images.device)
    turned = torch.stack([images.rot90(k, (2, 3)) for k in range(TURNS)])  # (4, N, C, S, S)
    return turned[quarters, torch.arange(len(images), device=images.device)], quarters


def fit(
    split: Split,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    build: Callable[[], Net],
    turned: bool = False,
    log: Callable[[str], None] = print,
) -> Net:
    """Trains what `build` makes, which gives features and logits of images, on a split's labels, or
    on turns. Label smoothing would erase what tells images of one class apart."""
    images, labels = split
    device = labels.device
    torch.manual_seed(seed)
    rng = torch.Generator(device).manual_seed(seed)
    net = build().to(device)
    steps = len(images) // batch_size
    optimizer = torch.optim.AdamW(net.parameters(), learning_rate, weight_decay=0.01)
    one_cycle = torch.optim.lr_scheduler.OneCycleLR
    schedule = one_cycle(optimizer, learning_rate, total_steps=steps * epochs)
    for epoch in range(epochs):
        total = torch.zeros((), device=device)
        order = torch.randperm(len(images), generator=rng, device=device)
        for index in order[: steps * batch_size].split(batch_size):
            batch = to_unit_range(images[index.to(images.device)].to(device))
            batch, wanted = turn(batch, rng) if turned else (batch, labels[index])
            _, logits = net(augment(batch, rng))
            loss = F.cross_entropy(logits, wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach()
        log(f"epoch {epoch + 1}/{epochs}: loss {total.item() / steps:.4f}")
    return net.eval()
