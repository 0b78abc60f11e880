"""The ledger of a search whose folder is a copy of one in a storage. (More is in test_study.)"""

from pathlib import Path

from optuna.trial import TrialState

from dcgan.store import Mirror
from tune.ledger import open_ledger, retry_failed, running, take_over_folders
from tune.options import Options
from tune.plan import Site, make_plan


def test_a_retry_takes_over_its_folder_in_a_storage_too(tmp_path: Path) -> None:
    """Also after it was interrupted between any two files."""
    storage, copy = tmp_path / "mounted", tmp_path / "copy"
    copy.mkdir()
    store = Mirror(copy, str(storage))
    options = Options(search="hparams", preset="demo")
    site = Site(store=store, device="cpu", precisions=("float32",), cpus=2, gpus=0)
    plan = make_plan(options, site)
    study = open_ledger(copy, plan.objectives)
    study.add_trial(running(plan.search.baseline(), plan.search.axes))
    study.tell(0, state=TrialState.FAIL)
    files = {
        "params.json": "{}",
        "checkpoint.pt": "weights",
        "result.json": "rows",
        "error.txt": "diverged",
    }
    (storage / "trial_0000").mkdir(parents=True)
    for name, text in files.items():
        (storage / "trial_0000" / name).write_text(text)
    (storage / "trial_0001").mkdir()
    interrupted = "of an attempt that was interrupted"
    (storage / "trial_0001" / "result.json").write_text(interrupted)
    assert retry_failed(plan) == 1
    for _ in range(2):
        plan.store.get_small()
        take_over_folders(plan, study)
        assert {path.name for path in storage.iterdir()} == {"trial_0001"}
        taken = {path.name: path.read_text() for path in (storage / "trial_0001").iterdir()}
        assert taken == {name: text for name, text in files.items() if name != "error.txt"}
