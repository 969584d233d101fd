"""Draw a set of pictures to try things on: eight shapes on noisy grounds, a folder for each class.

    mindrepvgg draw-shapes shapes
    mindrepvgg train -c folder --data_dir shapes --image_resize 64

The same command draws the same pictures everywhere. Nothing is downloaded, and nobody has rights in them.
"""

from collections.abc import Sequence

from mindrepvgg.cli.entry import ArgumentParser


def main(argv: Sequence[str] | None = None) -> int:
    """Write the set, and say how many pictures it has."""
    parser = ArgumentParser("draw-shapes", description=__doc__)
    parser.add_argument("folder", metavar="DIR", help="new or empty folder for the set")
    parser.add_argument("--count", type=int, default=60, metavar="N", help="pictures of each class (%(default)s)")
    parser.add_argument("--size", type=int, default=96, metavar="N", help="pixels of a side (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another one draws others (%(default)s)")
    arguments = parser.parse_args(argv)

    from mindrepvgg.data.shapes import CLASSES, write_shapes

    folder = write_shapes(arguments.folder, arguments.count, arguments.size, arguments.seed)
    print(f"{folder}: {len(CLASSES) * arguments.count} pictures, {arguments.count} of each of {', '.join(CLASSES)}")
    return 0
