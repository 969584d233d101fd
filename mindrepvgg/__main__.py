"""`python -m mindrepvgg VERB ...`, the same as the command `mindrepvgg`."""

import sys
from pathlib import Path

if not __package__:
    # `python mindrepvgg` runs this folder as a program. msrun does so in a checkout: it puts `python` in front of a
    # program that it does not know. Python then searches this folder first for modules, not the one that holds it.
    _package = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != _package]
    sys.path.insert(0, str(_package.parent))

from mindrepvgg.cli.verbs import main

if __name__ == "__main__":
    sys.exit(main())
