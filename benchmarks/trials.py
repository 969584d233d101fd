"""What the keys of a recipe are worth on some pictures: a run for each line of a list, and a table of what came out.

    python benchmarks/trials.py changes.txt runs/trials -c folder --data_dir photos

A line of changes.txt holds what is changed, as on the command line: `--lr 0.02 --epoch_size 60`. An empty line is the
recipe as it is. A run that is finished is not repeated, so lines can be added later. Top-1 is that of the last epoch,
because the best epoch would be chosen by the pictures that judge it. The time is the processor's, which other programs
change less than the clock's.
"""

import json
import re
import shlex
import sys
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

from mindrepvgg import api
from mindrepvgg.recipe import sources
from mindrepvgg.recipe.provenance import COMMAND_LINE
from mindrepvgg.text import markdown_table

_EVENTS = {"validate": "top-1", "validate_ema": "EMA", "precise_bn": "precise BN"}


def overrides(line) -> dict:
    """The keys that a line changes, with their values."""
    parser = ArgumentParser(prog=line, add_help=False)
    sources.add_recipe_arguments(parser)
    return sources.overrides_from_arguments(parser.parse_args(shlex.split(line)))


def trial(recipe, line, folder) -> dict:
    """The top-1 of a line's run by event, in percent, and its CPU seconds; a finished run is read, not repeated."""
    place = folder / (re.sub(r"\W+", "_", line).strip("_") or "as_it_is")
    found = place / "trial.json"
    if not found.exists():
        own = {"ckpt_save_dir": str(place), "val_interval": recipe.epoch_size, "keep_checkpoint_max": 0}
        changed = recipe.replace(COMMAND_LINE, **own, **overrides(line))
        start = time.process_time()
        if not api.train(changed, overwrite=True).finished:
            raise KeyboardInterrupt
        figures = {"seconds": time.process_time() - start}
        for record in map(json.loads, (place / "log.jsonl").read_text(encoding="utf-8").splitlines()):
            if record["event"] in _EVENTS:
                figures[record["event"]] = record["top1"]
        found.write_text(json.dumps(figures), encoding="utf-8")
    return json.loads(found.read_text(encoding="utf-8"))


def table(lines, trials) -> str:
    """The trials as Markdown; what no run has, has no column."""
    events = [event for event in _EVENTS if any(event in figures for figures in trials)]
    rows = [
        [line or "nothing", *(f"{x[e]:.1f}" if e in x else "" for e in events), f"{x['seconds']:.0f}"]
        for line, x in zip(lines, trials, strict=True)
    ]
    return markdown_table(["changed", *(_EVENTS[event] for event in events), "CPU seconds"], rows)


def main(argv=None):
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("changes", type=Path, help="file of lines of changed keys")
    parser.add_argument("folder", type=Path, help="where the runs are kept")
    sources.add_recipe_arguments(parser)
    arguments = parser.parse_args(argv)
    recipe = sources.recipe_from_arguments(arguments)
    lines = [line.strip() for line in arguments.changes.read_text(encoding="utf-8").splitlines()]
    print(table(lines, [trial(recipe, line, arguments.folder) for line in lines]))


if __name__ == "__main__":
    sys.exit(main())
