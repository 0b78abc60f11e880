"""The search: named searches, Optuna's sampler, Ray's ASHA and trainable, and the command line."""

import sys
from pathlib import Path

if sys.argv[0] == "-m" and not sys.flags.safe_path:
    # A command line: Python would look into the current folder first, whose files hide modules.
    sys.path[0] = str(Path(__file__).parents[1])
