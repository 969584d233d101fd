"""Hold an INT8 ONNX file of any program against what Ascend's AMCT accepts (docs/quantisation.md).

    mindrepvgg check-int8 a1.int8.onnx
    mindrepvgg check-int8 a1.int8.onnx --json

It says which rules the file breaks, where, and what to do. The exit status is 1 when it breaks one.
"""

import json
from collections.abc import Sequence

from mindrepvgg.cli import options
from mindrepvgg.cli.entry import ArgumentParser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the rules that are broken; nothing is run, and no MindSpore is needed."""
    parser = ArgumentParser("check-int8", description=__doc__)
    parser.add_argument("file", metavar="FILE", help="an ONNX file in QDQ form, of this or any program")
    options.add_json(parser)
    arguments = parser.parse_args(argv)

    import mindrepvgg

    found = mindrepvgg.check_int8(arguments.file)
    print(json.dumps(found.to_dict()) if arguments.json else found.format())
    return 0 if found.passed else 1
