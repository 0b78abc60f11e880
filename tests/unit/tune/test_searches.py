"""Searches: complete, exact where the original study was, every sampled value in effect."""

import dataclasses
import itertools
import json
from typing import Any

import optuna
import pytest
import torch
from optuna.distributions import IntDistribution

from dcgan.config import TrainConfig
from dcgan.loop import make_update, train_epoch
from dcgan.state import new_state
from tune.searches import (
    DEMO,
    FULL,
    PRESETS,
    SEARCHES,
    Preset,
    Search,
    choices_of,
    make_search,
)

PRECISIONS = ("float32", "tf32", "bfloat16", "float16")


def ask(search: Search, seed: int = 0, **fixed: Any) -> dict[str, Any]:
    """One point of a search, drawn at random, with some axes fixed."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    study.enqueue_trial(fixed)
    return search(study.ask())


@pytest.mark.parametrize("preset", PRESETS.values(), ids=list(PRESETS))
@pytest.mark.parametrize("name", SEARCHES)
def test_every_proposal_is_a_complete_config(name: str, preset: Any) -> None:
    search = make_search(name, preset, PRECISIONS, {})
    for seed in range(20):
        values = ask(search, seed)
        config = TrainConfig.from_dict(values)
        assert config.to_dict() == values
        assert (config.dataset, config.epochs) == (preset.dataset, preset.epochs)
        for follower, followed in search.ties.items():
            assert values[follower] == values[followed]
    assert TrainConfig.from_dict(ask(search, **search.baseline())) == search.base


def test_under_the_report_preset_the_base_is_the_original_studys_baseline() -> None:
    assert make_search("baseline", FULL, PRECISIONS, {}).base == TrainConfig()


def test_grids_are_the_original_studys_own() -> None:
    points = make_search("hparams", FULL, PRECISIONS, {}).as_grid().points()
    expected = itertools.product((1e-4, 3e-4, 5e-4), (64, 128), ("adam", "rmsprop"))
    assert [tuple(point.values()) for point in points] == list(expected)
    assert len(make_search("architecture", FULL, PRECISIONS, {}).as_grid().points()) == 8
    assert [
        p["precision"] for p in make_search("precision", FULL, PRECISIONS, {}).as_grid().points()
    ] == list(PRECISIONS)
    assert make_search("baseline", FULL, PRECISIONS, {}).as_grid().points() == [{}]


@pytest.mark.parametrize("name", SEARCHES)
def test_grid_points_lie_in_the_space(name: str) -> None:
    search = make_search(name, DEMO, PRECISIONS, {})
    for point in search.as_grid().points()[:50]:
        values = ask(search, **point)
        assert {axis: values[axis] for axis in point} == point


def test_learning_rates_are_log_uniform_around_the_original_studys() -> None:
    axis = make_search("hparams", DEMO, PRECISIONS, {}).axes["generator_lr"]
    assert isinstance(axis, optuna.distributions.FloatDistribution)
    assert axis.log
    assert axis.low < 1e-4
    assert axis.high > 5e-4


def optimizers(state: Any) -> list[torch.optim.Optimizer]:
    """Of G and D of a single lane."""
    return [*state.generator_optimizers.optimizers, *state.discriminator_optimizers.optimizers]


# What each sampled setting must change, read off the live objects and not off the config
EFFECTS: dict[str, Any] = {
    "generator_lr": lambda state, config: (
        [group["lr"] for group in optimizers(state)[0].param_groups]
        + [group["lr"] for group in optimizers(state)[1].param_groups]
    ),
    "optimizer": lambda state, config: [type(one).__bases__[-1] for one in optimizers(state)],
    "generator_depth": lambda state, config: [
        sum(isinstance(m, torch.nn.ConvTranspose2d) for m in state.generator.modules()),
        sum(isinstance(m, torch.nn.Conv2d) for m in state.discriminator.modules()),
    ],
    "generator_width": lambda state, config: [
        [m for m in state.generator.modules() if isinstance(m, torch.nn.ConvTranspose2d)][
            -1
        ].in_channels,
        next(
            m for m in state.discriminator.modules() if isinstance(m, torch.nn.Conv2d)
        ).out_channels,
    ],
    "extra_convs": lambda state, config: [
        sum(isinstance(m, torch.nn.Conv2d) for m in state.generator.modules())
    ],
    "batch_size": lambda state, config: [batches_seen(state, config)],
    "precision": lambda state, config: [logits_dtype(config)],
}
EXPECTED: dict[str, Any] = {
    "generator_lr": lambda value: [value, value],
    "optimizer": lambda value: (
        [{"adam": torch.optim.Adam, "rmsprop": torch.optim.RMSprop}[value]] * 2
    ),
    "generator_depth": lambda value: [value, value],
    "generator_width": lambda value: [value, value],
    "extra_convs": lambda value: [value],
    "batch_size": lambda value: [{value}],
    "precision": lambda value: [torch.bfloat16 if value == "bfloat16" else torch.float32],
}


def batches_seen(state: Any, config: TrainConfig) -> set[int]:
    """Sizes of the batches that D really gets in an epoch."""
    sizes = set()
    hook = state.discriminator.register_forward_pre_hook(
        lambda module, inputs: sizes.add(len(inputs[0]))
    )
    images = torch.zeros(600, 1, 28, 28, dtype=torch.uint8)
    train_epoch([state], images, make_update([state], images))
    hook.remove()
    return sizes


def logits_dtype(config: TrainConfig) -> torch.dtype:
    """The type in which D computes during a step of the loop."""
    small = dataclasses.replace(config, generator_width=1, discriminator_width=1, batch_size=2)
    state, dtypes = new_state([small], torch.device("cpu")), set()
    state.discriminator.register_forward_hook(
        lambda module, inputs, output: dtypes.add(output.dtype)
    )
    images = torch.zeros(2, 1, 28, 28, dtype=torch.uint8)
    train_epoch([state], images, make_update([state], images))
    (dtype,) = dtypes
    return dtype


def test_every_sampled_value_reaches_optimizer_model_or_loader() -> None:
    """For each axis of the widest search and several values of it."""
    search = make_search("joint", DEMO, ("float32", "bfloat16"), {"dataset": "mnist-mini"})
    assert set(search.axes) == set(EFFECTS), "a new axis needs its effect tested here"
    for name, axis in search.axes.items():
        values = list(getattr(axis, "choices", (7e-5, 3e-4, 2e-3)))
        for value in values:
            config = TrainConfig.from_dict(ask(search, seed=3, **{name: value}))
            state = new_state([config], torch.device("cpu"))
            assert EFFECTS[name](state, config) == EXPECTED[name](value), (name, value)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("hparams", {"generatr_lr": 1e-3}, "unknown config key 'generatr_lr'"),
        ("hparams", {"image_size": 30}, "image_size is 30; allowed is a multiple of 4"),
        ("hparams", {"batch_size": 64}, "batch_size cannot be fixed: search hparams varies"),
        ("hparams", {"discriminator_lr": 1e-3}, "discriminator_lr cannot be fixed"),
        ("baseline", {"generator_lr": 0}, "generator_lr is 0; allowed is a finite number above 0"),
    ],
)
def test_bad_searches_are_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_search(name, DEMO, PRECISIONS, settings)


@pytest.fixture
def latent(monkeypatch: pytest.MonkeyPatch) -> Search:
    """A search with an integer axis, registered as a newcomer would."""

    def latent(base: TrainConfig, preset: Preset, precisions: Any) -> Search:
        """Length of the noise vector."""
        return Search(
            name="latent",
            base=base,
            axes={"latent_size": IntDistribution(50, 150, step=25)},
            grid={"latent_size": (50, 100)},
            num_trials=preset.num_trials,
        )

    monkeypatch.setitem(SEARCHES, "latent", latent)
    return make_search("latent", DEMO, PRECISIONS, {})


def test_an_integer_axis_is_as_easy_as_the_others(latent: Search) -> None:
    assert latent.settings == 5
    assert list(choices_of(latent.axes["latent_size"]) or ()) == [50, 75, 100, 125, 150]
    drawn = {ask(latent, seed)["latent_size"] for seed in range(40)}
    assert drawn == {50, 75, 100, 125, 150}
    assert latent.holds({"latent_size": 75})
    assert not any(latent.holds({"latent_size": value}) for value in (60, 175, 25, "75"))
    attributes = {"log": False, "step": 25, "low": 50, "high": 150}
    expected = {"latent_size": {"name": "IntDistribution", "attributes": attributes}}
    assert latent.axes_as_json() == json.loads(json.dumps(expected))


def test_every_value_of_an_integer_axis_has_to_be_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def sizes(base: TrainConfig, preset: Preset, precisions: Any) -> Search:
        axes = {"image_size": IntDistribution(16, 32)}
        return Search(name="sizes", base=base, axes=axes, grid={}, num_trials=1)

    monkeypatch.setitem(SEARCHES, "sizes", sizes)
    with pytest.raises(ValueError, match="image_size is 17; allowed is a multiple of 4"):
        make_search("sizes", DEMO, PRECISIONS, {})


def test_as_a_grid_a_search_has_the_original_studys_values_alone() -> None:
    search = make_search("hparams", DEMO, PRECISIONS, {}).as_grid()
    assert search.settings == 12
    assert choices_of(search.axes["generator_lr"]) == (1e-4, 3e-4, 5e-4)
    assert all(search.holds(point) for point in search.points())
    assert make_search("baseline", DEMO, PRECISIONS, {}).as_grid().settings == 1


def test_a_continuous_axis_has_no_list_of_values() -> None:
    search = make_search("hparams", DEMO, PRECISIONS, {})
    assert choices_of(search.axes["generator_lr"]) is None
    assert search.settings == float("inf")
    assert choices_of(optuna.distributions.FloatDistribution(2.0, 2.0)) == [2.0]


def test_a_float_axis_of_steps_is_finite() -> None:
    """Its values are those that Optuna proposes, to the last bit, since they are compared."""
    base = make_search("baseline", DEMO, PRECISIONS, {})
    axis = optuna.distributions.FloatDistribution(0.1, 0.8, step=0.1)
    search = dataclasses.replace(base, axes={"beta1": axis})
    assert search.settings == 8
    for sampler in (optuna.samplers.RandomSampler(seed=0), optuna.samplers.TPESampler(seed=0)):
        study = optuna.create_study(sampler=sampler)
        for _ in range(60):
            trial = study.ask()
            assert search(trial)["beta1"] in (choices_of(axis) or ())
            study.tell(trial, trial.params["beta1"])
        assert {trial.params["beta1"] for trial in study.trials} <= set(choices_of(axis) or ())
