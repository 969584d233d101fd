"""The commands and Python blocks of documents: found, and run as they are printed.

    python tests/document_commands.py README.md [--replace TEXT=OTHER ...]

runs a document's blocks in one shell, in the current folder: tests/wheel.sh calls this where the package is installed.
tests/test_document_commands.py runs the package's own commands in the default suite, and checks that no command falls
between. `prepare` makes the pictures and weights that the documents take for granted. Needs no more than the package.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

DOCUMENTS = ("README.md", "docs/python.md", "docs/install.md")


@dataclass(frozen=True)
class Rule:
    """What becomes of commands that are not run as they are printed.

    Attributes:
        document: where they stand.
        pattern: of the whole command, without its comment.
        suite: what is added to them in the default suite; None: they are not run.
        wheel: the same in tests/wheel.sh.
        reason: why.
    """

    document: str
    pattern: str
    suite: str | None
    wheel: str | None
    reason: str


# A command that no rule names is run as it is printed, in both.
RULES = (
    Rule("README.md", "make demo", None, None, "takes minutes; the block `Train, fuse, deploy` does the same"),
    Rule("README.md", "make test", None, None, "is what runs this"),
    Rule("README.md", "python3 -m venv .*|pip .*", None, None, "tests/wheel.sh has installed the wheel"),
    Rule(
        "README.md",
        "mindrepvgg train -c quickstart .*",
        "--epoch_size 1 --batch_size 1000 --image_resize 16 --mode 1",
        "",
        "takes a minute",
    ),
    Rule(
        "README.md",
        "mindrepvgg quantize .*",
        "--limit 100 --calibration_images 32 --allow_drop",
        "",
        "needs a network that has learnt something",
    ),
    Rule(
        "README.md",
        "mindrepvgg train -c folder .*",
        "--show_config",
        "--epoch_size 1 --warmup_epochs 0",
        "takes minutes",
    ),
    Rule("README.md", "mindrepvgg train -c finetune .*", "--show_config", "--epoch_size 1", "takes minutes"),
    Rule("README.md", "msrun .*", None, None, "needs eight NPUs and ImageNet"),
    Rule("docs/install.md", "git .*|python3 -m venv .*|(pip|grep) .*", None, "", "installs"),
    Rule("docs/install.md", "python -c .*Ascend.*|mindrepvgg ascend-check", None, None, "needs an NPU"),
)

# The same for README's Python: texts, and what the default suite puts in their place. The shell's run is finished, so
# that going on with it trains nothing.
SMALLER = {
    '"quickstart", epoch_size=5, ckpt_save_dir="runs/python"': 'resume="runs/digits"',
    '"runs/python/': '"runs/digits/',
}


def blocks(text: str) -> list[tuple[str, str]]:
    """The fenced blocks of a document: (language, content)."""
    return re.findall(r"(?ms)^```(\w*)\n(.*?)^```$", text)


def commands(block: str) -> list[str]:
    """The commands of a block of shell, one a line, without comments; continued lines are joined."""
    lines = [line.partition(" #")[0].strip() for line in block.replace("\\\n", " ").splitlines()]
    return [" ".join(line.split()) for line in lines if line and not line.startswith("#")]


def rules_for(document: str, command: str) -> list[Rule]:
    """The rules whose pattern is this command."""
    return [rule for rule in RULES if rule.document == document and re.fullmatch(rule.pattern, command)]


def to_run(document: str, command: str, where: str) -> str | None:
    """A command as it is run in `where`, 'suite' or 'wheel'; None: it is not run there."""
    added = [getattr(rule, where) for rule in rules_for(document, command)]
    return None if None in added else " ".join([command, *filter(None, added)])


def prepare(folder: Path) -> None:
    """Put pictures into a folder, as README's words describe them: noise, brighter in one class than in the other."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    files = [f"photos/{name}/{number}.jpg" for name in ("cat", "dog") for number in range(25)]
    for file in [*files, "holiday/1.jpg", "holiday/2.jpg", "photo.jpg"]:
        pixels = rng.integers(0, 128, (48, 64, 3)) + (100 if "dog" in file else 0)
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path, quality=95)


def put_weights(cache: Path) -> None:
    """Put weights under the name of the released ones into a cache, as if they had been downloaded; name the cache."""
    os.environ["MINDREPVGG_CACHE"] = str(cache)
    from mindrepvgg import create_model, save_checkpoint
    from mindrepvgg.weights.cache import sealed_file
    from mindrepvgg.weights.released import find_released

    file = sealed_file(find_released("repvgg_a0"))
    file.parent.mkdir(parents=True)
    save_checkpoint(create_model("repvgg_a0"), file)


def run(document: str, text: str, replaced: dict[str, str]) -> int:
    """Run a document's blocks in one bash, in the current folder; print each command with the seconds that it took.

    Args:
        document: its name in RULES.
        text: its content.
        replaced: texts in the commands, and what to put in their place.

    Returns:
        0, or 1 where a command failed; its output is then printed, and no further command is run.
    """
    with tempfile.TemporaryDirectory() as temporary:
        log = Path(temporary, "log")
        script = ["set -o pipefail"]
        for language, block in blocks(text):
            if language == "bash":
                found = [to_run(document, command, "wheel") for command in commands(block)]
            elif language == "python":
                file = Path(temporary, f"{Path(document).stem}_{len(script)}.py")
                file.write_text(block, encoding="utf-8")
                found = [f"python {file}"]
            else:
                continue
            for command in filter(None, found):
                for old, new in replaced.items():
                    command = command.replace(old, new)
                said = shlex.quote(command)
                # Not in a subshell: `cd` and the activation of an environment last.
                script += [
                    f"SECONDS=0; {{ {command}; }} > {log} 2>&1 || {{ echo failed: {said}; cat {log}; exit 1; }}",
                    f'echo "$SECONDS s:" {said}',
                ]
        return min(subprocess.run(["bash", "-c", "\n".join(script)], check=False).returncode, 1)


def main() -> int:
    """Run one document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("document", choices=DOCUMENTS)
    parser.add_argument("--replace", metavar="TEXT=OTHER", action="append", default=[])
    arguments = parser.parse_args()
    text = Path(__file__).parents[1].joinpath(arguments.document).read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as cache:
        if arguments.document != "docs/install.md":
            prepare(Path.cwd())
            put_weights(Path(cache))
        return run(arguments.document, text, dict(pair.split("=", 1) for pair in arguments.replace))


if __name__ == "__main__":
    sys.exit(main())
