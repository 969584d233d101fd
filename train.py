"""Train a network: python train.py -c configs/quickstart.yaml [--key value ...]; the same as `mindrepvgg train`."""

import sys

from mindrepvgg.cli import entry
from mindrepvgg.cli.train import main

if __name__ == "__main__":
    sys.exit(entry.run(main))
