"""`python -m dcgan.export RUN --out DIR`: a trained generator for others to use.

The folder gets `generator.safetensors` (the weights), `generator.onnx` (noise to images, of any
number, for ONNX Runtime), `params.json` (the settings) and `README.md` (a model card: data and
licence, how good the images are and how that was measured, how to make some). `dcgan.sample` draws
from it as from a run.

ONNX needs a package of the extra `export`: `pip install dcgan-tune[export]`.
"""

import contextlib
import io
import json
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dcgan import checkpoint, cli
from dcgan.config import TrainConfig, write_lanes
from dcgan.data import licence_of, one_hot
from dcgan.files import replace
from dcgan.models import Generator
from dcgan.schema import (
    ANSWER_FILE,
    CARD_FILE,
    COLUMNS,
    LABEL_COLUMNS,
    ONNX_FILE,
    PARAMS_FILE,
    SEARCH_FILE,
    WEIGHTS_FILE,
    Row,
)
from dcgan.weights import pack

SHOWN = (
    *("fid", "kid", "sample_precision", "sample_recall", "classifier_score", "classes_covered"),
    *LABEL_COLUMNS,
)


def main() -> None:
    parser = cli.Parser(
        prog="python -m dcgan.export",
        description="Write a trained generator as safetensors and ONNX, with its settings and a "
        "model card.",
    )
    add = parser.add_argument
    text = "a checkpoint.pt, the folder of a run or trial, or of a search, whose best trial it is"
    add("run", type=Path, help=text)
    add("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    add("--last", action="store_true", help="the last epoch's generator, not the best epoch's")
    args = parser.parse_args()
    with cli.one_line_errors(parser):
        for file in export(args.run, args.out, last=args.last):
            print(file)


def export(run: Path, out: Path, *, last: bool = False) -> list[Path]:
    """Writes the files; returns their paths.

    Raises:
        FileNotFoundError: there is no checkpoint, or a search has no answer yet.
        ValueError: the checkpoint or the search's answer is damaged, or the latter names no trial.
        OSError: a package of the extra is missing, or the folder cannot be written.
    """
    trial, confirmed = best_of_search(run) if (run / SEARCH_FILE).is_file() else (run, {})
    generator, config, epoch = checkpoint.load_generator(trial, last=last)
    return write(out, generator, config, card_of(trial, config, epoch, confirmed))


def export_weights(trial: Path, out: Path, confirmed: dict[str, Any]) -> list[Path]:
    """Writes the files of a trial's best generator but ONNX's, which need no further package.
    `confirmed` is what the confirm stage found of its settings. Returns and raises as `export`."""
    generator, config, epoch = checkpoint.load_generator(trial)
    text = card_of(trial, config, epoch, confirmed, onnx=False)
    return write(out, generator, config, text, onnx=False)


def card_of(
    trial: Path, config: TrainConfig, epoch: int, confirmed: dict[str, Any], *, onnx: bool = True
) -> str:
    """The model card of an epoch's generator."""
    trust, which = said_of_confirmation(confirmed), f"The generator of epoch {epoch}"
    return card(config, row_of(trial, config, epoch), trust, which, onnx=onnx)


def write(
    out: Path, generator: Generator, config: TrainConfig, card: str, *, onnx: bool = True
) -> list[Path]:
    """Writes the files of a generator; returns their paths. OSError as of `export`."""
    contents = {WEIGHTS_FILE: pack(generator.state_dict())}
    if onnx:
        contents[ONNX_FILE] = as_onnx(generator, config)
    contents[CARD_FILE] = card.encode()
    out.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        replace(out / name, content)
    write_lanes(out / PARAMS_FILE, [config])
    return [out / name for name in (*contents, PARAMS_FILE)]


def best_of_search(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The folder of a search's best trial, and what its confirm stage found, if it had one."""
    file = folder / ANSWER_FILE
    if not file.is_file():
        raise FileNotFoundError(
            f"{folder} has no {ANSWER_FILE} yet, which names its best trial; make it by "
            f"python -m analysis.report, or name the folder of a trial"
        )
    try:
        best = json.loads(file.read_text(encoding="utf-8"))["groups"][0]["best"]
        return folder / best["trial"], best.get("confirmed") or {}
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ValueError(
            f"{file} is damaged, or no trial has finished ({error!r}); make it again by python -m "
            f"analysis.report, or name the folder of a trial"
        ) from error


def as_onnx(generator: Generator, config: TrainConfig) -> bytes:
    """The generator from `noise` (count, Z), standard normal, and of a conditional one `labels`
    (count,), to `images` (count, C, S, S) in [-1, 1]; the count is free."""
    with needed("onnxscript"):
        import onnxscript  # noqa: F401 - torch's exporter is made of it
    inputs = {"noise": torch.zeros(2, config.latent_size)}
    if config.label_size:
        inputs["labels"] = torch.zeros(2, dtype=torch.int64)
    count = {0: torch.export.Dim("count")}
    # it reports its steps, and that both inputs have the same count
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "# The axis name", UserWarning)
        program = torch.onnx.export(
            Labelled(generator).eval() if config.label_size else generator.eval(),
            tuple(inputs.values()),
            dynamo=True,
            input_names=list(inputs),
            output_names=["images"],
            dynamic_shapes=tuple(count for _ in inputs),
            verbose=False,
        )
    assert program
    content: bytes = program.model_proto.SerializeToString()
    return content


class Labelled(nn.Module):
    """A conditional generator of labels by number."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        images: Tensor = self.generator(noise, one_hot(labels, self.generator.classes)[:, None])
        return images


@contextlib.contextmanager
def needed(package: str) -> Iterator[None]:
    """Says how to install a package that is missing."""
    try:
        yield
    except ImportError as error:
        raise OSError(
            f"dcgan.export needs {package} ({error}); install it by pip install dcgan-tune[export]"
        ) from error


def row_of(run: Path, config: TrainConfig, epoch: int) -> Row:
    """The row of a generator's epoch and lane."""
    saved = checkpoint.load(run)
    lane = [TrainConfig.from_dict(settings) for settings in saved["lanes"]].index(config)
    (row,) = (row for row in saved["rows"] if (row["lane"], row["epoch"]) == (lane, epoch))
    return dict(row)


def card(config: TrainConfig, row: Row, trust: str, which: str, *, onnx: bool = True) -> str:
    """The model card, Markdown, with what is said of how far to trust the row's numbers, which of
    the run's generators it is, and how ONNX Runtime draws from it if there is such a file."""
    # of a person's folder the name alone: where it lies is nobody else's business
    data = Path(config.dataset).name
    shape = f"{config.image_size} × {config.image_size}"
    classes = f", of {config.label_size} classes as asked" if config.label_size else ""
    accuracy = ""
    if "extractor_accuracy" in row:  # rows of earlier versions lack it
        known = "class" if config.classes > 1 else "orientation"
        accuracy = f", which recognises the {known} of {row['extractor_accuracy']:.1%} of real ones"
    settings = [f"| {name} | {value} |" for name, value in config.to_dict().items()]
    settings[0] = f"| dataset | {data} |"
    about = COLUMNS | LABEL_COLUMNS
    scores = [f"| {name} | {row[name]:.4g} | {about[name]} |" for name in SHOWN if name in row]
    return "\n".join(
        [
            f"# A DCGAN that makes images of {data}, {shape}, "
            f"{config.channels} channel{'s' * (config.channels > 1)}",
            "",
            f"{which} of {config.epochs}, of seed {config.seed}, trained by dcgan-tune. It makes "
            "images like those of its training data, and nothing else"
            f"{classes}.",
            "",
            "## Data",
            "",
            f"{data}: {licence_of(config.dataset)}.",
            "",
            "## Quality",
            "",
            f"Of {row['eval_samples']:,} images from fixed noise, against the {row['eval_split']} "
            f"split of the data, on features of the classifier {row['extractor']} (values of other "
            f"extractors, such as Inception, do not compare){accuracy}; as many real images get a "
            f"fid of {row['fid_real']:.3g}.",
            "",
            "| metric | value | |",
            "|---|---|---|",
            *scores,
            "",
            trust,
            "",
            "## Images",
            "",
            "```sh",
            "python -m dcgan.sample . --count 64 --out samples.png",
            "```",
            "",
            *(onnx_lines(config) if onnx else ()),
            "## Settings",
            "",
            "| setting | value |",
            "|---|---|",
            *settings,
            "",
        ]
    )


def onnx_lines(config: TrainConfig) -> list[str]:
    """How ONNX Runtime draws images, in the card's Markdown."""
    given = '"noise": noise'
    if config.label_size:
        given += f', "labels": numpy.arange(64) % {config.label_size}'
    return [
        "```python",
        "import numpy, onnxruntime",
        f'session = onnxruntime.InferenceSession("{ONNX_FILE}")',
        f"noise = numpy.random.randn(64, {config.latent_size}).astype(numpy.float32)",
        f'(images,) = session.run(["images"], {{{given}}})  '
        f"# (64, {config.channels}, {config.image_size}, {config.image_size}) in [-1, 1]",
        "```",
        "",
    ]


def said_of_confirmation(confirmed: dict[str, Any]) -> str:
    """What the search's confirm stage found of these settings; or that one seed is no interval."""
    low, high = confirmed.get("test_low"), confirmed.get("test_high")
    if confirmed.get("test") is None or low is None or high is None or math.isnan(low):
        return (
            "These are of one training run, chosen as its best epoch; another seed would give "
            "others, and how different ones has not been measured."
        )
    return (
        f"They are of the best of many, so rather too good. The same settings, trained anew on "
        f"{confirmed['test_n']} fresh seeds, got a fid of {confirmed['test']:.2g} "
        f"[{low:.2g}, {high:.2g}] (95 % interval of the mean) on the test split."
    )


if __name__ == "__main__":
    main()
