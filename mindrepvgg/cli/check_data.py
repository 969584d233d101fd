r"""Decode every picture of a data set and say what is wrong with it.

    mindrepvgg check-data photos --num_parallel_workers 16 --bad_list bad.txt
    tr '\n' '\0' < bad.txt | xargs -0 rm --

The exit status is 1 when something needs repair: a picture is unreadable, the same picture lies under two classes, or
training would refuse the data. The same picture twice under one class, also in train and val, is reported and passes.
"""

import json
from collections.abc import Sequence

from mindrepvgg.cli import options
from mindrepvgg.cli.entry import ArgumentParser
from mindrepvgg.errors import UserError
from mindrepvgg.files import atomic_write


def main(argv: Sequence[str] | None = None) -> int:
    """Print a summary, and write the whole report."""
    parser = ArgumentParser("check-data", description=__doc__)
    parser.add_argument("data_dir", nargs="?", metavar="DIR", help="the folder a recipe names as data_dir")
    parser.add_argument("--dataset", default="folder", metavar="NAME", help="as in the recipe (%(default)s)")
    parser.add_argument("--val_share", type=float, default=0.0, metavar="X", help="as in the recipe (%(default)s)")
    options.add_threads(parser)
    parser.add_argument("--out", metavar="FILE", help="write the whole report, as JSON")
    parser.add_argument("--bad_list", metavar="FILE", help="write the unreadable files' names, one a line")
    options.add_json(parser, "print the whole report, for programs")
    arguments = parser.parse_args(argv)
    if arguments.num_parallel_workers < 1:
        raise UserError(f"num_parallel_workers (={arguments.num_parallel_workers}) must be at least 1")

    from mindrepvgg.data.check import check_data
    from mindrepvgg.data.check_report import write_bad_list

    report = check_data(
        arguments.data_dir, arguments.dataset, arguments.val_share, arguments.num_parallel_workers, show_progress=True
    )
    if arguments.out:
        with atomic_write(arguments.out, "w") as stream:
            json.dump(report.to_dict(), stream, indent=2)  # in ASCII: a file's name may hold bytes that are no text
    if arguments.bad_list:
        write_bad_list(arguments.bad_list, report)
    print(json.dumps(report.to_dict(), indent=2) if arguments.json else report.format())
    return 0 if report.passed else 1
