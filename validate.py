"""Validate a checkpoint: python validate.py --ckpt_path FILE; the same as `mindrepvgg validate`."""

import sys

from mindrepvgg.cli import entry
from mindrepvgg.cli.validate import main

if __name__ == "__main__":
    sys.exit(entry.run(main))
