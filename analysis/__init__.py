"""The answer: results as pandas frames, and the tables made from them. Reads files only; needs
neither Ray nor PyTorch."""

import sys
from pathlib import Path

if sys.argv[0] == "-m" and not sys.flags.safe_path:
    # A command line: Python would look into the current folder first, whose files hide modules.
    sys.path[0] = str(Path(__file__).parents[1])
