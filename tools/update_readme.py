"""Write what `make demo` reports into README.md, between its markers; run `make demo` first."""

import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(_ROOT))  # run from a checkout, installed or not

import demo

from mindrepvgg.cli import entry
from mindrepvgg.errors import UserError
from mindrepvgg.files import replace_section


def main(argv=None):
    """Replace what stands between the markers by fresh figures."""
    parser = entry.ArgumentParser(description=__doc__)
    parser.add_argument("--readme", type=Path, default=_ROOT / "README.md")
    readme = parser.parse_args(argv).readme
    checkpoints = [_ROOT / path for path in demo.CHECKPOINTS]
    if not all(path.exists() for path in checkpoints):
        raise UserError(f"{checkpoints[0].parent} has no finished demo; run make demo first")
    results = demo.report(*checkpoints)
    replace_section(readme, "results", results)
    print(results)
    return 0


if __name__ == "__main__":
    sys.exit(entry.run(main))
