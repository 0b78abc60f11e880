"""`dcgan.models`: shapes, initial weights, the averaged copy, and lanes."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dcgan.config import TrainConfig, replicate
from dcgan.lanes import BatchNorm, Linear, ToMap, join_lanes, split_lane
from dcgan.models import build, update_average


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    ("size", "depth", "sizes"),
    [
        (28, 2, [28, 14, 7]),
        (28, 3, [28, 14, 7, 3]),
        (100, 5, [100, 50, 25, 12, 6, 3]),
        (16, 1, [16, 8]),
    ],
)
def test_maps_are_halved_and_rounded_down(size: int, depth: int, sizes: list[int]) -> None:
    depths = {"generator_depth": depth, "discriminator_depth": depth}
    G, D = build([TrainConfig(image_size=size, generator_width=1, discriminator_width=1, **depths)])
    found: list[int] = []
    for layer in (*G.modules(), *D.modules()):
        if isinstance(layer, ToMap | nn.ConvTranspose2d | nn.Conv2d):
            layer.register_forward_hook(lambda layer, inputs, map: found.append(map.shape[-1]))
    D(G(torch.zeros(2, 100)))
    assert found == [*reversed(sizes), *sizes[1:]]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("extra_convs", [0, 2])
@pytest.mark.parametrize(
    ("size", "g_depth", "d_depth"),
    [
        (28, 2, 2),
        (28, 3, 3),
        (28, 1, 3),
        (20, 3, 2),
        (36, 4, 4),
        (100, 5, 5),
        (16, 1, 1),
        (16, 3, 1),
        (128, 6, 6),
    ],
)
def test_output_shapes(
    size: int, g_depth: int, d_depth: int, extra_convs: int, channels: int
) -> None:
    config = TrainConfig(
        image_size=size,
        generator_depth=g_depth,
        discriminator_depth=d_depth,
        extra_convs=extra_convs,
        channels=channels,
        latent_size=5,
        generator_width=2,
        discriminator_width=2,
    )
    G, D = build([config])
    images = G(torch.randn(3, 5, generator=torch.Generator().manual_seed(0)))
    assert images.shape == (3, channels, size, size)
    assert images.abs().max() <= 1
    assert images.std() > 0
    assert D(images).shape == (3, 1)


BASELINE_G = 100 * 128 * 7 * 7 + 2 * 128 + 128 * 64 * 16 + 2 * 64 + 64 * 16 + 1
BASELINE_D = 64 * 16 + 64 + 64 * 128 * 16 + 2 * 128 + 128 * 7 * 7 + 1


@pytest.mark.parametrize(
    ("values", "in_generator", "in_discriminator"),
    [
        ({}, BASELINE_G, BASELINE_D),
        ({}, 759_681, 138_689),
        ({"latent_size": 10}, BASELINE_G - 90 * 128 * 7 * 7, BASELINE_D),
        ({"extra_convs": 2}, BASELINE_G + 2 * (64 * 64 * 9 + 2 * 64), BASELINE_D),
        ({"channels": 3}, BASELINE_G + 2 * (64 * 16 + 1), BASELINE_D + 2 * 64 * 16),
        (
            {"image_size": 32},
            BASELINE_G + 100 * 128 * (8 * 8 - 7 * 7),
            BASELINE_D + 128 * (8 * 8 - 7 * 7),
        ),
        (
            {"generator_width": 32},
            100 * 64 * 49 + 2 * 64 + 64 * 32 * 16 + 2 * 32 + 32 * 16 + 1,
            BASELINE_D,
        ),
        (
            {"discriminator_width": 32},
            BASELINE_G,
            32 * 16 + 32 + 32 * 64 * 16 + 2 * 64 + 64 * 49 + 1,
        ),
        ({"generator_depth": 1}, 100 * 64 * 14 * 14 + 2 * 64 + 64 * 16 + 1, BASELINE_D),
        (
            {"generator_depth": 3},
            100 * 256 * 3 * 3
            + 2 * 256
            + 256 * 128 * 16
            + 2 * 128
            + 128 * 64 * 16
            + 2 * 64
            + 64 * 16
            + 1,
            BASELINE_D,
        ),
        ({"discriminator_depth": 1}, BASELINE_G, 64 * 16 + 64 + 64 * 14 * 14 + 1),
        (
            {"discriminator_depth": 3},
            BASELINE_G,
            64 * 16 + 64 + 64 * 128 * 16 + 2 * 128 + 128 * 256 * 16 + 2 * 256 + 256 * 3 * 3 + 1,
        ),
        ({"generator_lr": 1.0, "batch_size": 8, "optimizer": "rmsprop"}, BASELINE_G, BASELINE_D),
    ],
)
def test_settings_reach_the_nets(
    values: dict[str, Any], in_generator: int, in_discriminator: int
) -> None:
    G, D = build([TrainConfig(**values)])
    assert (parameters(G), parameters(D)) == (in_generator, in_discriminator)


def test_initial_weights_are_those_of_the_paper() -> None:
    means = {Linear: 0.0, nn.Conv2d: 0.0, nn.ConvTranspose2d: 0.0, BatchNorm: 1.0}
    layers = [
        layer
        for net in build([TrainConfig(extra_convs=1)])
        for layer in net.modules()
        if type(layer) in means
    ]
    assert {type(layer) for layer in layers} == set(means)
    for layer in layers:
        weight, bias = layer.weight.detach(), layer.bias
        n = weight.numel()
        assert weight.std().item() == pytest.approx(
            0.02, rel=4 / (2 * n) ** 0.5
        )  # 4 standard errors
        assert weight.mean().item() == pytest.approx(means[type(layer)], abs=4 * 0.02 / n**0.5)
        assert bias is None or not bias.any()


def test_the_seed_alone_determines_the_initial_weights() -> None:
    def weights(seed: int) -> list[Tensor]:
        return [
            w
            for net in build([TrainConfig(seed=seed)])
            for name, w in net.state_dict().items()
            if name.endswith("weight")
        ]

    before = torch.get_rng_state()
    try:
        torch.manual_seed(1)
        first = weights(seed=5)
        torch.manual_seed(2)
        again, other = weights(seed=5), weights(seed=6)
    finally:
        torch.set_rng_state(before)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def walk(net: nn.Module, steps: int) -> list[dict[str, Tensor]]:
    """Changes weights and batch-norm statistics as training would; the states after each step."""
    rng = torch.Generator().manual_seed(0)
    states = []
    for _ in range(steps):
        with torch.no_grad():
            net(torch.randn(8, 5, generator=rng))
            for parameter in net.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=rng), alpha=0.1)
        states.append(copy.deepcopy(net.state_dict()))
    return states


SMALL = TrainConfig(image_size=16, latent_size=5, generator_width=4)


def test_update_average_is_the_closed_form_for_weights_and_statistics() -> None:
    decay, (live, _) = 0.8, build([SMALL])
    average, start = copy.deepcopy(live), copy.deepcopy(live.state_dict())
    states = walk(copy.deepcopy(live), 3)
    for state in states:
        live.load_state_dict(state)
        update_average(average, live, decay)
    one, two, three = states
    for name, got in average.state_dict().items():
        if name.endswith("num_batches_tracked"):
            assert got == 0  # which nobody reads
            continue
        # a_3 = d^3 a_0 + (1 - d) (d^2 w_1 + d w_2 + w_3)
        expected = decay**3 * start[name] + (1 - decay) * (
            decay**2 * one[name] + decay * two[name] + three[name]
        )
        torch.testing.assert_close(got, expected)
        assert not torch.equal(got, three[name])
    for name, value in live.state_dict().items():
        assert torch.equal(value, three[name])  # the live net is left alone


def test_update_average_agrees_with_pytorch_on_weights() -> None:
    decay, (live, _) = 0.9, build([SMALL])
    average = copy.deepcopy(live)
    reference = AveragedModel(live, multi_avg_fn=get_ema_multi_avg_fn(decay))
    reference.update_parameters(live)  # its first update copies
    for state in walk(copy.deepcopy(live), 4):
        live.load_state_dict(state)
        update_average(average, live, decay)
        reference.update_parameters(live)
    for got, expected in zip(average.parameters(), reference.module.parameters(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    "values", [{}, {"extra_convs": 1, "channels": 3}, {"generator_depth": 3, "image_size": 20}]
)
def test_a_net_of_lanes_computes_what_each_one_does(values: dict[str, Any]) -> None:
    """Nets of other seeds, other inputs for each: every output is one net's own function of its own
    input."""
    small = {"generator_width": 2, "discriminator_width": 3, "latent_size": 5}
    lanes = replicate(TrainConfig(**(small | values)), 3)
    G, D = build(lanes)
    C, S = lanes[0].channels, lanes[0].image_size
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(4, 3, 5, generator=rng)
    images = torch.randn(4, 3, C, S, S, generator=rng)
    fakes, logits = G(noise.flatten(1)).unflatten(1, (3, -1)), D(images.flatten(1, 2))
    assert logits.shape == (4, 3)
    for lane, config in enumerate(lanes):
        one_g, one_d = build([config])
        own = one_g.state_dict()
        for name, weight in split_lane(G.state_dict(), lane, 3).items():
            if "running" not in name and "tracked" not in name:
                assert torch.equal(weight, own[name])
        torch.testing.assert_close(fakes[:, lane], one_g(noise[:, lane]))
        torch.testing.assert_close(logits[:, lane], one_d(images[:, lane])[:, 0])


def test_lanes_joined_are_the_whole() -> None:
    lanes = replicate(TrainConfig(generator_width=2, extra_convs=1), 3)
    whole = build(lanes)[0].state_dict()
    again = join_lanes([split_lane(whole, lane, 3) for lane in range(3)])
    assert again.keys() == whole.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())
