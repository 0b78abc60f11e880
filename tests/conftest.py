"""What every test shares."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """One thread, as in a trial on a CPU: quicker for nets this small, and the same rounding everywhere."""
    torch.set_num_threads(1)
