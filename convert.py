"""Convert a checkpoint, by default to deploy form: python convert.py SRC DST; the same as `mindrepvgg convert`."""

import sys

from mindrepvgg.cli import entry
from mindrepvgg.cli.convert import main

if __name__ == "__main__":
    sys.exit(entry.run(main))
