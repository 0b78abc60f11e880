"""`dcgan.export`: what is written makes the images that the run makes, in PyTorch and elsewhere."""

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

import few_digits  # noqa: F401 - registers a data set
import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import torch

import dcgan.sample
from dcgan import checkpoint
from dcgan.config import TrainConfig, read_lanes
from dcgan.evaluate import generate
from dcgan.export import card, export, export_weights
from dcgan.loop import train
from dcgan.schema import ANSWER_FILE, CHECKPOINT_FILE, Row

TINY = TrainConfig(
    dataset="few-digits",
    image_size=20,
    channels=3,
    generator_width=2,
    generator_depth=3,
    discriminator_width=2,
    extra_convs=1,
    latent_size=7,
    batch_size=200,
    generator_lr=1e-2,
    epochs=2,
    ema_decay=0.5,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two lanes of a net with odd maps, in colour."""
    folder = tmp_path_factory.mktemp("run")
    lanes = [TINY, dataclasses.replace(TINY, seed=1)]
    train(lanes, report=lambda row: None, checkpoint_dir=folder)
    return folder


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "generator"
    files = export(run, folder)
    names = ["generator.safetensors", "generator.onnx", "README.md", "params.json"]
    assert [file.relative_to(folder).as_posix() for file in files] == names
    return folder


@pytest.mark.parametrize("count", [1, 2, 65])
def test_onnx_runtime_and_pytorch_agree(count: int, run: Path, exported: Path) -> None:
    generator, _, _ = checkpoint.load_generator(run)
    session = onnxruntime.InferenceSession(
        exported / "generator.onnx", providers=["CPUExecutionProvider"]
    )
    noise = torch.randn(count, 7, generator=torch.Generator().manual_seed(count))
    (images,) = session.run(["images"], {"noise": noise.numpy()})
    expected = generate(generator, noise)
    assert expected.std() > 1e-3
    torch.testing.assert_close(torch.from_numpy(images), expected, rtol=1e-4, atol=1e-5)


def test_the_weights_are_those_of_the_best_epochs_best_lane(run: Path, exported: Path) -> None:
    """Read by the format's own library, and by ours."""
    generator, config, epoch = checkpoint.load_generator(run)
    weights = safetensors.torch.load_file(exported / "generator.safetensors")
    assert weights.keys() == generator.state_dict().keys()
    again, settings, none = checkpoint.load_generator(exported)
    assert (settings, none) == (config, 0)
    for name, weight in generator.state_dict().items():
        assert torch.equal(weights[name], weight)
        assert torch.equal(again.state_dict()[name], weight)
    rows: list[Row] = checkpoint.load(run)["rows"]
    best = min((row for row in rows if row["epoch"] == epoch), key=lambda row: float(row["fid"]))
    assert config.seed == best["lane"]
    card = (exported / "README.md").read_text(encoding="utf-8")
    assert f"| fid | {best['fid']:.4g} |" in card
    assert f"The generator of epoch {epoch} of 2, of seed {config.seed}" in card


def test_samples_are_drawn_from_it_as_from_the_run(
    run: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, folder in enumerate((run, exported)):
        out = tmp_path / f"{number}.png"
        arguments = ["sample", str(folder), "--seed", "3", "--count", "9", "--out", str(out)]
        monkeypatch.setattr(sys, "argv", arguments)
        dcgan.sample.main()
    assert (tmp_path / "0.png").read_bytes() == (tmp_path / "1.png").read_bytes()


def test_the_cards_code_runs(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = (exported / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(exported)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["images"].shape == (64, 3, 20, 20)
    assert np.abs(names["images"]).max() <= 1


def test_without_onnx_the_card_speaks_of_none(run: Path, tmp_path: Path) -> None:
    """As every search writes its best generator."""
    files = export_weights(run, tmp_path / "out", {})
    assert [file.name for file in files] == ["generator.safetensors", "README.md", "params.json"]
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "onnx" not in text
    share = checkpoint.load(run)["rows"][-1]["extractor_accuracy"]
    assert f"recognises the class of {share:.1%} of real ones" in text
    generator, config, _ = checkpoint.load_generator(tmp_path / "out")
    expected, of_run, _ = checkpoint.load_generator(run)
    assert config == of_run
    noise = torch.randn(4, config.latent_size)
    assert torch.equal(generate(generator, noise), generate(expected, noise))


def test_of_a_persons_folder_the_card_has_the_name_alone(run: Path) -> None:
    row = checkpoint.load(run)["rows"][-1]
    sizes = {"image_size": 20, "channels": 3, "classes": 0}
    text = card(TrainConfig(dataset="folder:/home/me/faces", **sizes), row, "", "The generator")
    assert text.startswith("# A DCGAN that makes images of faces, 20 × 20, 3 channels")
    assert "/home/me" not in text
    assert "recognises the orientation of" in text


def test_of_a_conditional_net_the_label_is_an_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(TINY, conditional="projection", epochs=1)
    train([config], report=lambda row: None, checkpoint_dir=tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out")
    generator, _, _ = checkpoint.load_generator(tmp_path / "out")
    session = onnxruntime.InferenceSession(
        tmp_path / "out" / "generator.onnx", providers=["CPUExecutionProvider"]
    )
    noise, labels = torch.randn(20, 7), torch.arange(20) % 10
    (images,) = session.run(["images"], {"noise": noise.numpy(), "labels": labels.numpy()})
    expected = generate(generator, noise, labels)
    torch.testing.assert_close(torch.from_numpy(images), expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(expected, generate(generator, noise, labels.flip(0)))
    test_the_cards_code_runs(tmp_path / "out", monkeypatch)


def test_of_a_search_it_is_the_best_trial_with_its_interval(run: Path, tmp_path: Path) -> None:
    (tmp_path / "search.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"has no answer\.json yet, .*analysis\.report"):
        export(tmp_path, tmp_path / "out")
    confirmed = {"test": 9.81, "test_low": 9.24, "test_high": 10.4, "test_n": 3}
    best = {"trial": "trial_0007", "confirmed": confirmed}
    (tmp_path / ANSWER_FILE).write_text(json.dumps({"groups": [{"best": best}]}))
    trial = tmp_path / "trial_0007"
    trial.mkdir()
    (trial / CHECKPOINT_FILE).write_bytes((run / CHECKPOINT_FILE).read_bytes())
    export(tmp_path, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "on 3 fresh seeds, got a fid of 9.8 [9.2, 10] (95 % interval of the mean)" in card
    assert read_lanes(tmp_path / "out") == [checkpoint.load_generator(trial)[1]]


def test_a_lane_is_known_by_all_its_settings(tmp_path: Path) -> None:
    """Lanes of one seed that differ in their rates have rows of their own."""
    lanes = [TINY, dataclasses.replace(TINY, generator_lr=1e-4, discriminator_lr=1e-5)]
    train(lanes, report=lambda row: None, checkpoint_dir=tmp_path / "run")
    saved = checkpoint.load(tmp_path / "run")
    _, config, epoch = checkpoint.load_generator(tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    (row,) = (
        row for row in saved["rows"] if row["epoch"] == epoch and row["lane"] == lanes.index(config)
    )
    assert f"| fid | {row['fid']:.4g} |" in card


@pytest.mark.parametrize(
    "answer", ["", "[]", "{}", '{"groups": []}', '{"groups": [{"best": null}]}']
)
def test_an_answer_that_names_no_trial_is_said(answer: str, tmp_path: Path) -> None:
    (tmp_path / "search.json").write_text("{}")
    (tmp_path / ANSWER_FILE).write_text(answer)
    with pytest.raises(ValueError, match=r"answer\.json is damaged, or no trial has finished"):
        export(tmp_path, tmp_path / "out")


def test_what_is_damaged_is_said(exported: Path, tmp_path: Path) -> None:
    for name in ("params.json", "generator.safetensors"):
        (tmp_path / name).write_bytes((exported / name).read_bytes())
    whole = (exported / "generator.safetensors").read_bytes()
    for content in (b"", whole[:5], whole[:100], whole[:-1], b"x" * 100):
        (tmp_path / "generator.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match=r"generator\.safetensors is damaged or of other"):
            checkpoint.load_generator(tmp_path)
    (tmp_path / "generator.safetensors").write_bytes(whole)
    settings = json.loads((tmp_path / "params.json").read_text())
    (tmp_path / "params.json").write_text(json.dumps(settings | {"generator_width": 3}))
    with pytest.raises(ValueError, match="damaged or of other settings"):
        checkpoint.load_generator(tmp_path)


def test_a_package_that_is_missing_is_named(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(OSError, match=r"needs onnxscript .*; install it by pip install dcgan-tune"):
        export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()
