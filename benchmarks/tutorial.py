"""Run the tutorial as it is printed, and write what its commands say into docs/tutorial.md and its translation.

python benchmarks/tutorial.py                  # a few minutes; the documents' pictures of a run are made anew, too
python benchmarks/tutorial.py --keep FOLDER    # what it makes stays there

A block of shell is run in one bash with the others. The block `console` behind it gets what it printed, of which
`<!-- shown: 5 first, 3 last -->` in front of it keeps some lines. A block of Python becomes the file in its first line.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from mindrepvgg.cli import entry
from mindrepvgg.errors import UserError
from mindrepvgg.files import atomic_write

PAGE = Path(__file__).resolve().parents[1] / "docs" / "tutorial.md"
TRANSLATION = PAGE.parent / "zh" / PAGE.name
_BLOCK = re.compile(r"(?ms)^```(bash|python|console)\n(.*?)^```$")
_SHOWN = re.compile(r"<!-- shown: (\d+) first, (\d+) last -->\n\Z")
_LONGEST = 120  # characters of a line that is shown
_PLACE = "/home/you/tutorial"  # what stands for the folder


def run(text: str, folder: Path, replaced: dict[str, str] | None = None) -> list[str]:
    """Run a page's blocks in a folder.

    Args:
        text: the page.
        folder: the current folder of its commands.
        replaced: texts in the blocks, and what to put in their place.

    Returns:
        What each block of shell printed, in their order.

    Raises:
        UserError: a command failed; the message has the block and its last lines.
    """
    script = ["set -e"]
    logs = []
    for kind, block in _BLOCK.findall(text):
        for old, new in (replaced or {}).items():
            block = block.replace(old, new)
        if kind == "python":
            folder.joinpath(re.match(r"# (\w+\.py)", block)[1]).write_text(block, encoding="utf-8")
        elif kind == "bash":
            logs.append((folder / f"block_{len(logs)}.log", block))
            # Not in a subshell: a server that one block starts is ended by another.
            script.append(f"{{ {block}}} > {logs[-1][0].name} 2>&1")
    status = subprocess.run(["bash", "-c", "\n".join(script)], cwd=folder, check=False).returncode
    place = str(folder.resolve())
    said = [(log.read_text(encoding="utf-8").replace(place, _PLACE), block) for log, block in logs if log.exists()]
    if status:
        raise UserError(f"a block of the page failed: {said[-1][1]!r}: {said[-1][0][-500:]!r}")
    return [log for log, _ in said]


def with_output(text: str, said: list[str]) -> str:
    """The page with what its commands printed in the blocks behind them."""
    said, parts, end, last = iter(said), [], 0, ""
    for block in _BLOCK.finditer(text):
        between = text[end : block.start()]
        parts.append(between)
        if block[1] == "console":
            shown = _SHOWN.search(between)
            parts.append(f"```console\n{_cut(last, *map(int, shown.groups())) if shown else _cut(last)}```")
        else:
            last = next(said) if block[1] == "bash" else last
            parts.append(block[0])
        end = block.end()
    return "".join([*parts, text[end:]])


def with_output_of(text: str, page: str) -> str:
    """A translation with what stands behind the commands of the page."""
    said = iter([block[0] for block in _BLOCK.finditer(page) if block[1] == "console"])
    return _BLOCK.sub(lambda block: next(said) if block[1] == "console" else block[0], text)


def _cut(said, first=12, last=6):
    """Some lines of what was printed; long ones shortened."""
    lines = [line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..." for line in said.splitlines()]
    if len(lines) > first + last + 1:
        lines = [*lines[:first], "...", *lines[len(lines) - last :]]
    return "".join(f"{line}\n" for line in lines)


def main(argv=None) -> int:
    """Run it, and write the page and its translation."""
    parser = entry.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="a new folder for what it makes")
    arguments = parser.parse_args(argv)
    import pictures  # loads matplotlib

    text = PAGE.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        text = with_output(text, run(text, folder))
        pictures.of_the_run(folder)
    translation = with_output_of(TRANSLATION.read_text(encoding="utf-8"), text)
    for path, content in ((PAGE, text), (TRANSLATION, translation)):
        with atomic_write(path, "w") as stream:
            stream.write(content)
    return 0


if __name__ == "__main__":
    sys.exit(entry.run(main))
