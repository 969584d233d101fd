r"""Look at every picture of a data set and say what is wrong: python tools/check_data.py DIR [--out report.json]

    python tools/check_data.py imagenet --num_parallel_workers 16 --bad_list bad.txt
    tr '\n' '\0' < bad.txt | xargs -0 rm --

Exit status 1 when something needs repair: an unreadable picture, the same one under two classes, or what training would
refuse, such as a class without pictures. Duplicates of one class, also between train and val, are told and pass.
"""

import json
import os
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(_ROOT))  # run from a checkout, whether the package is installed or not


from mindrepvgg.cli import entry
from mindrepvgg.errors import UserError
from mindrepvgg.files import atomic_write


def main(argv=None):
    """Print a summary, and write the whole report."""
    parser = entry.ArgumentParser(description="Decode every picture of a data set and say what is wrong with it.")
    parser.add_argument("data_dir", nargs="?", metavar="DIR", help="the folder a recipe names as data_dir")
    parser.add_argument("--dataset", default="imagenet", metavar="NAME", help="as in the recipe (%(default)s)")
    parser.add_argument("--val_share", type=float, default=0.0, metavar="X", help="as in the recipe (%(default)s)")
    parser.add_argument("--num_parallel_workers", type=int, default=os.cpu_count() or 1, metavar="N", help="threads")
    parser.add_argument("--out", metavar="FILE", help="write the whole report, as JSON")
    parser.add_argument("--bad_list", metavar="FILE", help="write the unreadable files' names, one a line")
    parser.add_argument("--json", action="store_true", help="print the whole report, for programs")
    arguments = parser.parse_args(argv)
    if arguments.num_parallel_workers < 1:
        raise UserError(f"num_parallel_workers (={arguments.num_parallel_workers}) must be at least 1")

    from mindrepvgg.data.check import check_data, write_bad_list

    options = (arguments.dataset, arguments.val_share, arguments.num_parallel_workers)
    report = check_data(arguments.data_dir, *options, show_progress=True)
    if arguments.out:
        with atomic_write(arguments.out, "w") as stream:
            json.dump(report.to_dict(), stream, indent=2)  # in ASCII: a file's name may hold bytes that are no text
    if arguments.bad_list:
        write_bad_list(arguments.bad_list, report)
    print(json.dumps(report.to_dict(), indent=2) if arguments.json else report.format())
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(entry.run(main))
