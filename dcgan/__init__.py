"""DCGAN on small images: config, data, models, training loop and metrics, in plain PyTorch."""

import sys
from pathlib import Path

if sys.argv[0] == "-m" and not sys.flags.safe_path:
    # A command line: Python would look into the current folder first, whose files hide modules.
    sys.path[0] = str(Path(__file__).parents[1])
