"""Many GANs as one network: L lanes side by side, each with its own weights, statistics, optimizer.

Convolutions have L groups, batch norms L times the channels, linear layers are L maps. Nothing
passes from one lane to another, so with losses summed over lanes each trains as it would alone.
Every parameter and statistic holds the lanes' own one after another along its first dimension.

Maps are kept channels last throughout, also where they become vectors: a CPU takes ten times as
long for an activation's gradient where one side is laid out otherwise (docs/log.md).

Shapes: N batch, L lanes, W width, M side of the smaller map, I inputs, O outputs, C channels and S
side of the images.
"""

import inspect
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcgan import precision
from dcgan.config import TrainConfig

Weights = Mapping[str, Tensor]


class Linear(nn.Linear):
    """L linear maps side by side: (N, L, I) to (N, L, O)."""

    def __init__(self, lanes: int, inputs: int, outputs: int, *, bias: bool) -> None:
        super().__init__(inputs, lanes * outputs, bias=bias)
        self.lanes = lanes

    def weights(self) -> Tensor:
        """As they are used: (L O, I)."""
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        if self.lanes == 1:
            return F.linear(x, self.weights(), self.bias)
        weight = self.weights().unflatten(0, (self.lanes, -1))  # (L, O, I)
        y: Tensor = torch.einsum("nli,loi->nlo", x, weight)
        if self.bias is not None:
            y += self.bias.unflatten(0, (self.lanes, -1))
        return y


class ToMap(nn.Module):
    """Vectors (N, L, W M^2) to maps (N, L W, M, M)."""

    def __init__(self, size: int, layout: torch.memory_format) -> None:
        super().__init__()
        self.size, self.layout = size, layout

    def forward(self, x: Tensor) -> Tensor:
        rows: Tensor = x.unflatten(2, (self.size, self.size, -1))  # (N, L, M, M, W)
        maps = rows.permute(0, 2, 3, 1, 4).flatten(3).permute(0, 3, 1, 2)
        return maps.contiguous(memory_format=self.layout)


class FromMap(nn.Module):
    """Maps (N, L W, M, M) to vectors (N, L, W M^2)."""

    def __init__(self, lanes: int) -> None:
        super().__init__()
        self.lanes = lanes

    def forward(self, x: Tensor) -> Tensor:
        pixels: Tensor = x.permute(0, 2, 3, 1).unflatten(3, (self.lanes, -1))  # (N, M, M, L, W)
        return pixels.permute(0, 3, 1, 2, 4).flatten(2)


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that does not count its batches: nothing reads the count, and it would take a
    kernel each time."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            self.momentum or 0.0,
            self.eps,
        )


class Projection(nn.Module):
    """L inner products of features with their label's vector (Miyato and Koyama 2018, arXiv
    1802.05637, equation 3): (N, L, I) and one-hot labels (N, L, K) to (N, L)."""

    def __init__(self, lanes: int, inputs: int, classes: int) -> None:
        super().__init__()
        self.lanes = lanes
        self.weight = nn.Parameter(torch.empty(lanes * classes, inputs))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        vectors = torch.einsum("nlk,lki->nli", labels, self.weight.unflatten(0, (self.lanes, -1)))
        product: Tensor = (x * vectors).sum(2)
        return product


def spectral(weight: Tensor, left: Tensor, lanes: int, *, move: bool) -> Tensor:
    """Each lane's weight divided by its largest singular value (Miyato et al. 2018, arXiv
    1802.05957, algorithm 1), by a step of power iteration from `left` (L O), which is moved along
    if asked."""
    rows = weight.unflatten(0, (lanes, -1)).flatten(2)  # (L, O, I k k)
    with torch.no_grad():
        right = F.normalize(torch.einsum("lo,loi->li", left.unflatten(0, (lanes, -1)), rows), dim=1)
        u = F.normalize(torch.einsum("loi,li->lo", rows, right), dim=1)
        if move:
            left.copy_(u.flatten())
    largest = torch.einsum("lo,loi,li->l", u, rows, right)
    factors = largest.repeat_interleave(len(weight) // lanes, output_size=len(weight))
    return weight / factors.view(-1, *[1] * (weight.dim() - 1))


class SpectralConv(nn.Conv2d):
    """A convolution in each lane whose weights have a largest singular value of 1."""

    left: Tensor

    def __init__(self, inputs: int, outputs: int, *, groups: int) -> None:
        super().__init__(inputs, outputs, 4, 2, 1, groups=groups)
        self.register_buffer("left", torch.ones(outputs))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            weight = spectral(self.weight, self.left, self.groups, move=self.training)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, groups=self.groups)


class SpectralLinear(Linear):
    """Linear maps side by side whose weights have a largest singular value of 1."""

    left: Tensor

    def __init__(self, lanes: int, inputs: int, outputs: int, *, bias: bool) -> None:
        super().__init__(lanes, inputs, outputs, bias=bias)
        self.register_buffer("left", torch.ones(lanes * outputs))

    def weights(self) -> Tensor:
        with torch.autocast(self.weight.device.type, enabled=False):
            return spectral(self.weight, self.left, self.lanes, move=self.training)


class PatchConv(nn.Conv2d):
    """A convolution of kernel 4, stride 2 and padding 1 in each lane, as one batch of products of
    patches with weights: (N, L C, S, S) to (N, L W, M, M)."""

    def forward(self, x: Tensor) -> Tensor:
        patches = F.pad(x, (1, 1, 1, 1)).unfold(2, 4, 2).unfold(3, 4, 2)  # (N, L C, M, M, 4, 4)
        patches = patches.unflatten(1, (self.groups, -1))
        weight = self.weight.unflatten(0, (self.groups, -1))  # (L, W, C, 4, 4)
        y = torch.einsum("nlcijuv,lwcuv->nijlw", patches, weight).flatten(3)  # (N, M, M, L W)
        if self.bias is not None:
            y = y + self.bias.to(y.dtype)
        return y.permute(0, 3, 1, 2)


class PatchUpConv(nn.ConvTranspose2d):
    """A transposed convolution of kernel 4, stride 2 and padding 1 in each lane, as one batch of
    products whose results are added where they overlap: (N, L W, M, M) to (N, L C, S, S).

    Row 2a + r of the kernel, of which a and r are 0 or 1, takes row i to row 2(i + a) + r.
    """

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        rows = x.unflatten(1, (self.groups, -1))  # (N, L, W, M, M)
        weight = self.weight.unflatten(3, (2, 2)).unflatten(2, (2, 2))  # (L W, C, a, r, b, s)
        weight = weight.unflatten(0, (self.groups, -1))
        parts = torch.einsum("nlwij,lwcarbs->abnlcirjs", rows, weight)
        parts = parts.flatten(7, 8).flatten(5, 6).flatten(3, 4)  # (2, 2, N, L C, 2 M, 2 M)
        y = parts.new_zeros(())
        for a, b in itertools.product((0, 1), repeat=2):
            y = y + F.pad(parts[a, b], (2 * b, 2 - 2 * b, 2 * a, 2 - 2 * a))
        S = 2 * x.shape[2] + int(self.output_padding[0])
        y = y[..., 1 : S + 1, 1 : S + 1]
        return y + self.bias.to(y.dtype)[:, None, None] if self.bias is not None else y


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


class Uncompiled:
    """Methods of torch's optimizers as they are without decorators, which import `torch._dynamo`,
    seconds of each new process, to have `torch.compile` leave them alone. Nothing here compiles."""

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)


class Adam(Uncompiled, torch.optim.Adam):
    """torch's own, which starts sooner."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))


class RMSprop(Uncompiled, torch.optim.RMSprop):
    """torch's own, which starts sooner."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.RMSprop.step))


def make_optimizer(
    parameters: Sequence[Tensor], config: TrainConfig, rate: float
) -> torch.optim.Optimizer:
    """The config's optimizer, of a kind that a CUDA graph can capture."""
    capturable = parameters[0].is_cuda
    if config.optimizer == "adam":
        betas = (config.beta1, config.beta2)
        return Adam(parameters, rate, betas=betas, fused=True, capturable=capturable)
    alpha = config.rmsprop_alpha
    return RMSprop(parameters, rate, alpha=alpha, capturable=capturable)


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
        self.ones = torch.ones(len(lanes), device=device)

    def descend(self, losses: Tensor) -> None:
        """Updates each lane by its loss (L,), which depends on its own parameters alone."""
        for parameter in self.parameters:
            parameter.grad = None
        if losses.is_cuda:
            factors = self.ones  # of the losses, whose sum is differentiated
            if self.scalers[0].is_enabled():
                ones = zip(self.scalers, factors, strict=True)
                factors = torch.stack([scaler.scale(one) for scaler, one in ones])
            losses.backward(factors)
        else:  # given factors, autograd would import sympy: a second of each new process
            losses.sum().backward()
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
