"""What a search that goes on must share with the one that began, beside its space: pictures, and
the yardstick that measures by them."""

from dcgan.config import TrainConfig
from dcgan.data import has_own_yardstick
from dcgan.schema import YARDSTICK_FILE
from dcgan.store import Store
from dcgan.weights import is_whole
from tune.options import read_record


def check_same_data(store: Store, base: TrainConfig, data: str) -> None:
    """Refuses to go on with a search of a person's folder whose pictures have changed by a
    ValueError; `data` is a digest of what they are now."""
    if read_record(store)["data"] != data:
        raise ValueError(
            f"{store.location} cannot go on: {base.dataset} has other pictures than when it began; "
            f"bring those back, or begin another search"
        )


def saved_yardstick(store: Store, base: TrainConfig) -> bytes:
    """The weights of the yardstick that a search has trained; none if it is shipped. ValueError
    where they are lost."""
    if not has_own_yardstick(base.dataset):
        return b""
    store.get(YARDSTICK_FILE)
    file = store.folder / YARDSTICK_FILE
    if not file.is_file() or not is_whole(file):
        raise ValueError(
            f"{file} is missing or damaged, and new epochs would not compare with those that there "
            f"are; bring it back from a copy, or begin another search"
        )
    return file.read_bytes()
