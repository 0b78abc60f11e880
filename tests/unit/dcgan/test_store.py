"""The working copy of a search and what it puts into its storage: a mounted folder here, S3 in
integration/test_s3.py."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest

from dcgan.files import read_rows, replace, write_json, write_rows
from dcgan.schema import DRIVER_FILE
from dcgan.store import Mirror, StorageError, Store, copy_of, mirror_of, search_store


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    folder = tmp_path / "mounted" / "run"
    folder.mkdir(parents=True)
    return folder


def copy(storage: Path, name: str) -> Mirror:
    """A machine's working copy."""
    folder = storage.parents[1] / name
    folder.mkdir(exist_ok=True)
    return Mirror(folder, str(storage))


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def tree(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): file.read_text()
        for file in folder.rglob("*")
        if file.is_file()
    }


def test_what_one_machine_puts_another_gets(storage: Path) -> None:
    one, other = copy(storage, "one"), copy(storage, "other")
    write(one.folder / "trial_0000" / "result.json", "rows")
    write(one.folder / "trial_0000" / "checkpoint.pt", "weights")
    one.put()
    other.get("*.json")
    assert tree(other.folder) == {"trial_0000/result.json": "rows"}
    other.get()
    assert tree(other.folder) == tree(one.folder) == tree(storage)


def test_only_what_has_changed_is_put_and_got(storage: Path) -> None:
    one, other = copy(storage, "one"), copy(storage, "other")
    file = write(one.folder / "a.json", "1")
    one.put()
    other.get()
    (storage / "a.json").unlink()
    one.put()  # it was put before, and has not changed
    assert not list(storage.iterdir())
    write(file, "22")
    one.put(file)
    mine = os.stat(other.folder / "a.json")
    other.get()
    assert (other.folder / "a.json").read_text() == "22"
    assert (
        os.stat(other.folder / "a.json").st_ino != mine.st_ino
    )  # replaced whole, never written into
    mine = os.stat(other.folder / "a.json")
    other.get()
    other.put()  # what was got is not put again
    assert os.stat(other.folder / "a.json") == mine
    assert (storage / "a.json").read_text() == "22"


def test_what_is_of_this_machine_alone_stays_here(storage: Path) -> None:
    one = copy(storage, "one")
    for name in (".lock", ".wandb.lock", "x.123.tmp", ".ray/state.json", "wandb.log"):
        write(one.folder / name, "")
    one.put()
    assert tree(storage) == {}


def test_a_folder_that_is_no_copy_has_nothing_to_do(tmp_path: Path) -> None:
    store = Store(tmp_path)
    file = write(tmp_path / "study.db", "")
    before = tree(tmp_path)
    store.begin()
    store.get()
    store.put()
    store.commit(file)
    store.remove("study.db")
    assert tree(tmp_path) == before


def test_a_trial_works_in_a_fresh_copy_of_its_own(
    storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # Ray's working folder of the trial
    write(tmp_path / "trial_0000" / "result.json", "what an earlier attempt left")
    search = copy(storage, "worker")
    with pytest.raises(StorageError, match=f"{storage} is not to be seen from "):
        search.trial("trial_0000")  # as where the folder is not mounted
    write(storage / "study.db", "")
    write(storage / "trial_0000" / "params.json", "{}")
    trial = pickle.loads(pickle.dumps(search)).trial("trial_0000")
    assert tree(trial.folder) == {"params.json": "{}"}
    write(trial.folder / "result.json", "rows")
    trial.put()
    assert (storage / "trial_0000" / "result.json").read_text() == "rows"


def test_the_confirm_stage_is_a_folder_in_the_same_copy(storage: Path, tmp_path: Path) -> None:
    search = copy(storage, "driver")
    search.begin()
    stage = search.inside("confirm")
    stage.commit(write(stage.folder / "study.db", "decision"))
    assert (storage / "confirm" / "study.db").read_text() == "decision"
    assert stage.location == f"{storage}/confirm"
    plain = Store(tmp_path / "plain").inside("confirm")
    assert plain.folder == tmp_path / "plain" / "confirm"


def test_a_file_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.json", "old")

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        replace(path, b"new")
    assert tree(tmp_path) == {"a.json": "old"}  # nor is the unfinished file left


def test_rows_and_json_round_trip(tmp_path: Path) -> None:
    rows = [{"epoch": 1, "fid": 2.5}, {"epoch": 2, "fid": 1.5, "device": "cpu"}]
    write_rows(tmp_path / "result.json", rows)
    assert read_rows(tmp_path / "result.json") == rows
    assert read_rows(tmp_path / "none.json") == []
    write_json(tmp_path / "a.json", {"a": [1]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1]}


def test_the_driver_begins_with_what_the_storage_has_and_nothing_else(storage: Path) -> None:
    write(storage / "study.db", "decisions")
    write(storage / "trial_0000" / "params.json", "{}")
    write(storage / "trial_0000" / "checkpoint.pt", "large")
    driver = copy(storage, "driver")
    write(driver.folder / "trial_0007" / "params.json", "of a search that was deleted")
    for lock in (".lock", ".wandb.lock"):
        write(driver.folder / lock, "")
    driver.begin()
    files = {"study.db", "trial_0000/params.json", ".lock", ".wandb.lock", DRIVER_FILE}
    assert set(tree(driver.folder)) == files


def test_a_copy_of_a_search_that_is_gone_is_emptied(storage: Path, tmp_path: Path) -> None:
    one = copy(storage, "one")
    write(one.folder / "wandb.json", "of a search of the same name, that was deleted")
    write(one.folder / "wandb" / "run" / "x", "")
    one.clear()
    assert tree(one.folder) == {}
    here = Store(tmp_path / "here")
    file = write(here.folder / "study.db", "")
    here.clear()  # it is no copy
    assert file.is_file()


def test_what_was_emptied_is_fetched_again(storage: Path) -> None:
    """Also what this process had fetched before: the record, before it became the driver."""
    write(storage / "search.json", "{}")
    one = copy(storage, "one")
    one.get("search.json")
    one.begin()
    assert set(tree(one.folder)) == {"search.json", DRIVER_FILE}
    one.clear()
    one.get()
    assert set(tree(one.folder)) == {"search.json", DRIVER_FILE}


def test_a_uri_without_a_bucket_is_refused() -> None:
    with pytest.raises(
        ValueError,
        match=r"^--storage is s3://; expected a bucket or folder in it, such as s3://BUCKET/FOLDER$",
    ):
        search_store("s3://", "run", several=False)


def test_a_driver_that_was_followed_by_another_decides_no_more(storage: Path) -> None:
    former, latter = copy(storage, "former"), copy(storage, "latter")
    former.begin()
    former.commit(write(former.folder / "study.db", "first"))
    latter.begin()
    latter.commit(write(latter.folder / "study.db", "second"))
    with pytest.raises(
        StorageError,
        match=r"was taken over by process \d+ on .* since .*; this one, process \d+ .*, has ended",
    ):
        former.commit(write(former.folder / "study.db", "third"))
    assert (storage / "study.db").read_text() == "second"


def test_the_study_that_is_written_here_is_never_replaced_by_its_older_copy(storage: Path) -> None:
    """SQLite would go on writing into the file that was there before."""
    driver = copy(storage, "driver")
    driver.begin()
    study = write(driver.folder / "study.db", "1")
    driver.commit(study)
    before = study.stat().st_ino
    driver.get_small()
    assert study.stat().st_ino == before


def test_names_that_lead_out_of_the_folder_are_left_out(
    storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An object in a store may be called anything."""
    import fsspec

    fs = fsspec.filesystem("memory")
    fs.pipe("/bucket/run/a.json", b"1")
    found = fs.find("/bucket/run", detail=True)
    monkeypatch.setattr(
        type(fs),
        "find",
        lambda *_, **__: found | {"/bucket/run/../../escaped.json": found["/bucket/run/a.json"]},
    )
    one = Mirror(storage.parents[1] / "one", "memory://bucket/run")
    one.get()
    assert tree(one.folder) == {"a.json": "1"}
    assert not list(storage.parents[1].rglob("escaped*"))


def test_removed_things_are_gone_on_both_sides(storage: Path) -> None:
    one = copy(storage, "one")
    write(one.folder / "trial_0000" / "params.json", "{}")
    write(one.folder / "trial_0001" / "params.json", "{}")
    one.put()
    one.remove("trial_0000")
    one.remove("trial_0000")  # by another's hand
    assert set(tree(storage)) == set(tree(one.folder)) == {"trial_0001/params.json"}
    assert not one.has("trial_0000")
    assert one.has("trial_0001")
    assert one.has("trial_0001/params.json")


def test_a_storage_that_cannot_be_written_is_named(storage: Path) -> None:
    one = copy(storage, "one")
    write(one.folder / "a.json", "")
    shutil.rmtree(storage)
    storage.touch()  # a file in the place of the folder
    with pytest.raises(
        StorageError, match=rf"{storage} cannot be written from .*: FileExistsError"
    ):
        one.put()


def test_a_storage_of_an_unknown_kind_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^storage nowhere://bucket/run cannot be used: allowed: folders, s3://"
    ):
        Mirror(tmp_path, "nowhere://bucket/run").get()


def test_a_storage_whose_package_is_missing_says_which(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"^storage gs://bucket/run cannot be used: it needs a package: pip install gcsfs",
    ):
        Mirror(tmp_path, "gs://bucket/run").get()


def test_where_a_search_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    here = search_store(str(tmp_path / "runs"), "one", several=False)
    assert here.folder == tmp_path / "runs" / "one"
    assert here.location == str(tmp_path / "runs" / "one")
    assert not here.is_mirror
    mounted = search_store(str(tmp_path / "runs"), "one", several=True)
    assert mounted.location == str(tmp_path / "runs" / "one")
    remote = search_store("s3://bucket/runs/", "one", several=False)
    assert remote.location == "s3://bucket/runs/one"
    copies = {
        mounted.folder,
        remote.folder,
        mirror_of("s3://bucket-runs/one").folder,
        copy_of(remote.location, "tracked").folder,
    }
    assert len(copies) == 4
    assert {folder.name for folder in copies} == {"one"}
    assert all(tmp_path / ".cache" in folder.parents for folder in copies)


def test_searches_beside_one_another_are_found(storage: Path) -> None:
    write(storage / "search.json", "")
    write(storage.parent / "b" / "search.json", "")
    (storage.parent / "c").mkdir()
    assert copy(storage, "one").siblings("search.json") == ["b", "run"]
