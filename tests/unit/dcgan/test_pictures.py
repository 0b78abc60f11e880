"""A person's own pictures: formats, classes, splits, what is skipped, what is kept."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dcgan import data, pictures
from dcgan.config import TrainConfig
from dcgan.data import SPLITS, Source, load_split
from dcgan.pictures import Pictures, UnreadableError, decode, find, probe, read_picture

Make = Callable[[Path], None]


def colours(size: tuple[int, int] = (40, 40), seed: int = 0) -> Image.Image:
    """A smooth picture: red grows to the right, green downwards; blue is one value."""
    x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    pixels = np.stack([x, y, np.full_like(x, (60 + 40 * seed) % 256)], -1)
    return Image.fromarray(pixels.round().astype(np.uint8))


@pytest.fixture(autouse=True)
def own_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCGAN_DATA_DIR", str(tmp_path / "data"))
    for cache in (find, probe, load_split):
        cache.cache_clear()


def write_folder(folder: Path, classes: dict[str, int]) -> Path:
    """PNGs in subfolders, or in the folder itself for the class ""."""
    for number, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            colours(seed=number + i).save(folder / name / f"{i:03}.png")
    return folder


# One picture


def as_16_bit(path: Path) -> None:
    grey = np.asarray(colours().convert("L"), dtype=np.uint16) * 257
    Image.fromarray(grey).save(path.with_suffix(".png"))


def as_palette(path: Path) -> None:
    colours().quantize(256).save(path.with_suffix(".gif"))


def as_animation(path: Path) -> None:
    other = Image.new("RGB", (40, 40), "black")
    frames = {"save_all": True, "append_images": [other, other]}
    colours().save(path.with_suffix(".webp"), lossless=True, **frames)


def as_turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned = colours().transpose(Image.Transpose.ROTATE_90)
    turned.save(path.with_suffix(".jpg"), exif=exif, quality=95, subsampling=0)


def as_wide(path: Path) -> None:
    """With borders at both sides, which are cut off."""
    wide = Image.new("RGB", (80, 40), "white")
    wide.paste(colours(), (20, 0))
    wide.save(path.with_suffix(".png"))


def as_transparent(path: Path) -> None:
    picture = colours().convert("RGBA")
    picture.save(path.with_suffix(".png"))


KINDS: dict[str, tuple[Make, int]] = {
    "png": (lambda path: colours().save(path.with_suffix(".png")), 1),
    "capitals": (lambda path: colours().save(path.with_suffix(".PNG"), format="PNG"), 1),
    "bmp": (lambda path: colours().save(path.with_suffix(".bmp")), 1),
    "jpeg": (lambda path: colours().save(path.with_suffix(".jpeg"), quality=95), 12),
    "cmyk": (lambda path: colours().convert("CMYK").save(path.with_suffix(".tif")), 4),
    "palette": (as_palette, 12),
    "animation": (as_animation, 1),
    "turned by EXIF": (as_turned, 12),
    "wide": (as_wide, 1),
    "transparent": (as_transparent, 1),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_of_any_format_is_the_same_small_image(kind: str, tmp_path: Path) -> None:
    make, tolerance = KINDS[kind]
    make(tmp_path / "one")
    (file,) = tmp_path.glob("one.*")
    found = read_picture(file, 20, 3)
    expected = np.asarray(colours().resize((20, 20), Image.Resampling.BILINEAR))
    assert found.shape == (3, 20, 20)
    assert found.dtype == np.uint8
    difference = np.abs(found.transpose(1, 2, 0).astype(int) - expected.astype(int))
    assert difference.max() <= tolerance


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    as_16_bit(tmp_path / "deep")
    found = read_picture(tmp_path / "deep.png", 40, 1)
    expected = np.asarray(colours().convert("L"))
    assert np.abs(found[0].astype(int) - expected.astype(int)).max() <= 1
    assert np.unique(found).size > 100


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    Image.new("RGBA", (16, 16), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (read_picture(tmp_path / "clear.png", 16, 3) == 255).all()


def test_colours_become_grey_where_one_channel_is_asked_for(tmp_path: Path) -> None:
    colours().save(tmp_path / "one.png")
    assert (
        read_picture(tmp_path / "one.png", 40, 1)[0] == np.asarray(colours().convert("L"))
    ).all()


def truncated(path: Path) -> None:
    colours((200, 200)).save(path)
    path.write_bytes(path.read_bytes()[:300])


BROKEN: dict[str, tuple[Make, str]] = {
    "empty": (Path.touch, "^empty file$"),
    "text": (lambda path: path.write_text("no picture") and None, "no picture that Pillow knows"),
    "truncated": (truncated, "truncated|broken|incomplete"),
    "gone": (lambda path: None, "No such file"),
    "floats": (
        lambda path: Image.fromarray(np.full((9, 9), 7, np.float32)).save(path, format="TIFF"),
        "values beyond 0 to 1 in a picture of mode F",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_damaged_picture_is_refused_with_the_reason(kind: str, tmp_path: Path) -> None:
    make, message = BROKEN[kind]
    file = tmp_path / "one.png"
    make(file)
    with pytest.raises(UnreadableError, match=message):
        read_picture(file, 16, 1)


# A folder


def test_subfolders_are_classes_in_the_order_of_their_names(tmp_path: Path) -> None:
    folder = find(write_folder(tmp_path / "own", {"zebra": 20, "ape": 30, "cat": 25}))
    assert folder.classes == ("ape", "cat", "zebra")
    for file, label in zip(folder.files, folder.labels, strict=True):
        assert file.parent.name == folder.classes[label]
    assert len(folder.files) == 75


@pytest.mark.parametrize("classes", [{"": 60}, {"only": 60}, {"": 20, "a": 20, "b": 20}])
def test_without_two_subfolders_alone_there_are_no_labels(
    classes: dict[str, int], tmp_path: Path
) -> None:
    folder = find(write_folder(tmp_path / "own", classes))
    assert folder.classes == ()
    assert set(folder.labels) == {0}
    assert len(folder.files) == 60


def test_hidden_and_other_files_are_no_pictures(tmp_path: Path) -> None:
    own = write_folder(tmp_path / "own", {"": 55})
    (own / ".hidden.png").touch()
    (own / "__MACOSX").mkdir()
    colours().save(own / "__MACOSX" / "copy.png")
    (own / "notes.txt").write_text("of the pictures")
    (own / "again").symlink_to(own)  # around in a circle
    folder = find(own)
    assert {file.resolve().parent for file in folder.files} == {own}
    assert len(folder.files) == 55  # each once, or splits would share pictures
    assert folder.others[0] == (own / "notes.txt", "no picture by its ending .txt")


def test_too_few_pictures_are_refused(tmp_path: Path) -> None:
    own = write_folder(tmp_path / "few", {"a": 9, "b": 9})
    (own / "notes.txt").touch()
    with pytest.raises(
        ValueError, match=r"few has 18 pictures; needed are at least 50 \(1 files are of other"
    ):
        find(own)


def test_a_missing_folder_is_looked_for_in_the_data_folder(tmp_path: Path) -> None:
    own = write_folder(tmp_path / "moved" / "faces", {"": 60})
    name = f"folder:{tmp_path}/old/faces"
    with pytest.raises(FileNotFoundError, match=r"no folder .*old/faces, nor .*data/faces"):
        load_split(Source(name, 16, 3), "train")
    split = load_split(Source(name, 16, 3, own.parent), "train")
    assert split.images.shape == (36, 3, 16, 16)


def test_splits_are_whole_disjoint_and_hold_every_class(tmp_path: Path) -> None:
    name = f"folder:{write_folder(tmp_path / 'own', {'a': 40, 'b': 35, 'c': 25})}"
    names = []
    for split, count in zip(SPLITS, (60, 20, 20), strict=True):
        files, labels = pictures.load_folder(name, split, tmp_path)
        assert len(files) == len(labels) == count
        assert set(labels.tolist()) == {0, 1, 2}
        assert set(labels[:10].tolist()) == {0, 1, 2}  # what a part of the images stands for
        names += [str(file) for file in files.files]
    assert len(set(names)) == len(names) == 100


def test_forty_seven_classes_of_four_pictures(tmp_path: Path) -> None:
    own = write_folder(tmp_path / "own", {f"{i:02}": 4 for i in range(47)})
    assert len(find(own).classes) == 47
    sizes = [len(load_split(Source(f"folder:{own}", 16, 3), split).images) for split in SPLITS]
    assert sum(sizes) == 188
    assert min(sizes) > 30


# Sizes


def test_size_and_channels_are_those_of_the_pictures(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    for i in range(60):
        colours((50 + i, 47)).convert("L").convert("RGB").save(own / f"{i}.png")
    assert probe(own) == (44, 1)  # grey, though saved in colours
    config = TrainConfig(dataset=f"folder:{own}")
    assert (config.image_size, config.channels, config.classes) == (44, 1, 0)
    for i in range(5):
        colours((500, 400), seed=i).save(own / f"{i}.png")
    probe.cache_clear()
    assert probe(own) == (44, 3)


def test_a_config_that_says_everything_does_not_look(tmp_path: Path) -> None:
    """Results are read where their data are not."""
    given = {"image_size": 32, "channels": 3, "classes": 4, "conditional": "concat"}
    config = TrainConfig(dataset="folder:/nowhere/at/all", **given)
    assert config.label_size == 4
    with pytest.raises(FileNotFoundError, match="there is no folder /nowhere/at/all"):
        TrainConfig(dataset="folder:/nowhere/at/all", image_size=32)


def test_a_relative_folder_is_known_by_its_whole_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "own", {"": 60})
    monkeypatch.chdir(tmp_path)
    config = TrainConfig(dataset="folder:./own")
    assert config.dataset == f"folder:{tmp_path}/own"
    assert TrainConfig.from_dict(config.to_dict()) == config


def test_nets_are_given_labels_only_where_there_are_classes(tmp_path: Path) -> None:
    own = write_folder(tmp_path / "own", {"": 60})
    with pytest.raises(
        ValueError, match=r"conditional is concat, but folder:.*/own has no classes"
    ):
        TrainConfig(dataset=f"folder:{own}", conditional="concat")


# What is kept


def test_what_is_skipped_is_printed_and_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = write_folder(tmp_path / "own", {"": 80})
    for broken in ("empty", "none"):
        (own / f"{broken}.png").write_bytes(b"" if broken == "empty" else b"no picture at all")
    (own / "notes.txt").touch()
    counts = {}
    for split in SPLITS:
        counts[split] = len(load_split(Source(f"folder:{own}", 16, 3), split).images)
    assert sum(counts.values()) == 80
    said = capsys.readouterr().err
    assert "empty.png: empty file" in said
    assert "none.png: no picture that Pillow knows" in said
    assert "notes.txt: no picture by its ending .txt" in said
    listed: dict[str, str] = {}
    for about in (tmp_path / "data" / "decoded").glob("*.json"):
        listed |= json.loads(about.read_text())["skipped"]
    assert {Path(name).name for name in listed} == {"empty.png", "none.png", "notes.txt"}


def test_too_few_readable_pictures_are_refused(tmp_path: Path) -> None:
    own = write_folder(tmp_path / "own", {"": 60})
    for file in find(own).files:
        if int(file.stem) >= 20:
            file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"validation has \d images; needed are at least 10"):
        load_split(Source(f"folder:{own}", 16, 3), "validation")


def test_small_images_are_made_once_and_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source(f"folder:{write_folder(tmp_path / 'own', {'a': 40, 'b': 40})}", 16, 3)
    first = load_split(source, "train")
    load_split.cache_clear()
    monkeypatch.setattr(pictures, "read_picture", lambda *given: pytest.fail("it is read again"))
    again = load_split(source, "train")
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.labels, again.labels)
    again.images[0] = 1  # of this process alone
    load_split.cache_clear()
    assert torch.equal(load_split(source, "train").images, first.images)


def test_another_picture_is_noticed(tmp_path: Path) -> None:
    own = write_folder(tmp_path / "own", {"": 60})
    files = Pictures(find(own).files)
    before = files.key(16, 3)
    colours(seed=9).save(files.files[0])
    os.utime(files.files[0], ns=(1, 1))
    assert files.key(16, 3) != before
    assert files.key(20, 3) != files.key(16, 3) != files.key(16, 1)


def test_where_nothing_can_be_written_it_works_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = Pictures(find(write_folder(tmp_path / "own", {"": 60})).files)
    expected = decode(files, 16, 3, tmp_path / "cache", "own")[0].clone()
    (tmp_path / "file").touch()
    images, places = decode(files, 16, 3, tmp_path / "file" / "cache", "own")
    assert torch.equal(images, expected)
    assert places.tolist() == list(range(60))


def test_a_killed_decoder_leaves_nothing_that_is_taken_for_whole(tmp_path: Path) -> None:
    files = Pictures(find(write_folder(tmp_path / "own", {"": 60})).files)
    expected = decode(files, 16, 3, tmp_path / "cache", "own")[0].clone()
    name = files.key(16, 3)
    (tmp_path / "cache" / f"{name}.json").unlink()  # it is written last
    whole = (tmp_path / "cache" / f"{name}.npy").read_bytes()
    (tmp_path / "cache" / f"{name}.npy").write_bytes(whole[: len(whole) // 2])
    images, _ = decode(files, 16, 3, tmp_path / "cache", "own")
    assert torch.equal(images, expected)


def test_a_cut_file_of_small_images_is_made_again(tmp_path: Path) -> None:
    """As a full disk or a copy leaves it."""
    files = Pictures(find(write_folder(tmp_path / "own", {"": 60})).files)
    expected = decode(files, 16, 3, tmp_path / "cache", "own")[0].clone()
    file = tmp_path / "cache" / f"{files.key(16, 3)}.npy"
    file.write_bytes(file.read_bytes()[:-1000])
    images, _ = decode(files, 16, 3, tmp_path / "cache", "own")
    assert torch.equal(images, expected)


def test_a_removed_folder_leaves_a_clear_error(tmp_path: Path) -> None:
    own = write_folder(tmp_path / "own", {"": 60})
    shutil.rmtree(own)
    with pytest.raises(FileNotFoundError, match="give the folder of your pictures"):
        data.folder_dataset(f"folder:{own}", tmp_path)
