"""Pack a folder of pictures into MindRecord files.

Run again, the command continues after the last whole file, or checks what is packed already.
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from mindrepvgg.cli import options
from mindrepvgg.cli.entry import ArgumentParser
from mindrepvgg.text import counted


def main(argv: Sequence[str] | None = None) -> int:
    """Pack every split of SRC and say what each became."""
    parser = ArgumentParser("pack", description=__doc__)
    parser.add_argument("src", metavar="SRC", help="folder with train and val, or one folder of classes")
    parser.add_argument("dst", metavar="DST", help="folder to pack into, which becomes data_dir")
    parser.add_argument("--short_side", type=int, metavar="PIXELS", help="resize larger pictures (default: keep all)")
    parser.add_argument("--quality", type=int, default=95, help="of the resized ones' JPEG (%(default)s)")
    parser.add_argument("--shard_size", type=int, default=512, metavar="MB", help="of a file, and memory (%(default)s)")
    options.add_threads(parser)
    parser.add_argument("--on_bad_image", default="error", choices=("error", "skip"), help="skip: leave out and list")
    parser.add_argument("--overwrite", action="store_true", help="begin anew, without what DST holds of it")
    arguments = parser.parse_args(argv)

    from tqdm import tqdm

    from mindrepvgg.data.pack import pack_folder

    watch = partial(tqdm, unit="", disable=not sys.stderr.isatty())
    for split, index in pack_folder(**vars(arguments), watch=watch).items():
        pictures, classes = counted(index["num_images"], "picture"), counted(len(index["class_names"]), "class")
        files = counted(len(index["shards"]), "file")
        size = sum(shard["bytes"] for shard in index["shards"]) / 2**20
        print(
            f"{Path(arguments.dst, split)}: {pictures} of {classes} in {files}, {size:.1f} MB, read back and compared"
        )
        for _, reason in index["left_out"]:
            print(f"left out: {reason}")
    return 0
