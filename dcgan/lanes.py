"""Many GANs as one network: L lanes side by side, each with its own weights, statistics, optimizer.

Convolutions have L groups, batch norms L times the channels, linear layers are L maps. Nothing
passes from one lane to another, so with losses summed over lanes each trains as it would alone.
Every parameter and statistic holds the lanes' own one after another along its first dimension.

Maps are kept channels last throughout, also where they become vectors: a CPU takes ten times as
long for an activation's gradient where one side is laid out otherwise (docs/log.md).

Shapes: N batch, L lanes, W width, M side of the smallest map, I inputs, O outputs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dcgan import precision
from dcgan.config import TrainConfig

Weights = Mapping[str, Tensor]


class Linear(nn.Linear):
    """L linear maps side by side: (N, L, I) to (N, L, O)."""

    def __init__(self, lanes: int, inputs: int, outputs: int, *, bias: bool) -> None:
        super().__init__(inputs, lanes * outputs, bias=bias)
        self.lanes = lanes

    def forward(self, x: Tensor) -> Tensor:
        if self.lanes == 1:
            return super().forward(x)
        weight: Tensor = self.weight.unflatten(0, (self.lanes, -1))  # (L, O, I)
        y: Tensor = torch.einsum("nli,loi->nlo", x, weight)
        if self.bias is not None:
            y += self.bias.unflatten(0, (self.lanes, -1))
        return y


class ToMap(nn.Module):
    """Vectors (N, L, W M^2) to maps (N, L W, M, M)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        rows: Tensor = x.unflatten(2, (self.size, self.size, -1))  # (N, L, M, M, W)
        return rows.permute(0, 2, 3, 1, 4).flatten(3).permute(0, 3, 1, 2)


class FromMap(nn.Module):
    """Maps (N, L W, M, M) to vectors (N, L, W M^2)."""

    def __init__(self, lanes: int) -> None:
        super().__init__()
        self.lanes = lanes

    def forward(self, x: Tensor) -> Tensor:
        pixels: Tensor = x.permute(0, 2, 3, 1).unflatten(3, (self.lanes, -1))  # (N, M, M, L, W)
        return pixels.permute(0, 3, 1, 2, 4).flatten(2)


def join_lanes(nets: Sequence[Weights]) -> dict[str, Tensor]:
    """The weights of a net of all lanes from each one's own; counts have no dimension."""
    return {
        name: torch.cat([net[name] for net in nets]) if tensor.dim() else tensor
        for name, tensor in nets[0].items()
    }


def split_lane(weights: Weights, lane: int, lanes: int) -> dict[str, Tensor]:
    """One lane's own weights from those of a net of all."""
    return {
        name: tensor.chunk(lanes)[lane] if tensor.dim() else tensor
        for name, tensor in weights.items()
    }


def make_optimizer(
    parameters: Sequence[Tensor], config: TrainConfig, rate: float
) -> torch.optim.Optimizer:
    """The config's optimizer, of a kind that a CUDA graph can capture."""
    capturable = parameters[0].is_cuda
    if config.optimizer == "adam":
        betas = (config.beta1, config.beta2)
        return torch.optim.Adam(parameters, rate, betas=betas, fused=True, capturable=capturable)
    alpha = config.rmsprop_alpha
    return torch.optim.RMSprop(parameters, rate, alpha=alpha, capturable=capturable)


class LaneOptimizers:
    """One of torch's optimizers for each lane of a net, over views of its part of each parameter:
    each lane has rates of its own, and float16's scaler skips the update of a lane whose gradients
    overflow, and no other."""

    def __init__(
        self, net: nn.Module, lanes: Sequence[TrainConfig], rates: Sequence[float]
    ) -> None:
        self.parameters = list(net.parameters())
        # each lane's part of each parameter; of a single lane the parameters themselves
        self.views: list[Sequence[Tensor]] = [self.parameters]
        if len(lanes) > 1:
            parts = [parameter.detach().chunk(len(lanes)) for parameter in self.parameters]
            self.views = list(zip(*parts, strict=True))
        self.optimizers = [
            make_optimizer(views, config, rate)
            for views, config, rate in zip(self.views, lanes, rates, strict=True)
        ]
        device = self.parameters[0].device
        self.scalers = [precision.scaler(config.precision, device) for config in lanes]

    def descend(self, losses: Tensor) -> None:
        """Updates each lane by its loss (L,), which depends on its own parameters alone."""
        for parameter in self.parameters:
            parameter.grad = None
        pairs = zip(self.scalers, losses, strict=True)
        torch.stack([scaler.scale(loss) for scaler, loss in pairs]).sum().backward()
        if len(self.views) > 1:
            for parameter, *views in zip(self.parameters, *self.views, strict=True):
                assert parameter.grad is not None
                for view, gradient in zip(views, parameter.grad.chunk(len(views)), strict=True):
                    view.grad = gradient
        for optimizer, scaler in zip(self.optimizers, self.scalers, strict=True):
            scaler.step(optimizer)
            scaler.update()

    def state_dict(self) -> list[dict[str, Any]]:
        """What each lane's optimizer and scaler have gathered."""
        return [
            {"optimizer": optimizer.state_dict(), "scaler": scaler.state_dict()}
            for optimizer, scaler in zip(self.optimizers, self.scalers, strict=True)
        ]

    def load_state_dict(self, saved: Sequence[Mapping[str, Any]]) -> None:
        """Takes over what was gathered; settings stay those of the config and the device."""
        for content, optimizer, scaler in zip(saved, self.optimizers, self.scalers, strict=True):
            settings = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({**content["optimizer"], "param_groups": settings})
            for parameter, gathered in optimizer.state.items():
                for name, moment in gathered.items():
                    if moment.shape == parameter.shape:
                        # fused Adam goes through memory, whatever the strides say
                        layout = torch.empty_like(parameter, requires_grad=False)
                        gathered[name] = layout.copy_(moment)
            scaler.load_state_dict(content["scaler"])
