"""Run the corpora at length: `python -m fuzz --minutes 10`, which `make fuzz MINUTES=10` does.

Prints what was tried, keeps what was found in fuzz_finds/, and exits with status 1 if there was anything.
`python -m fuzz --replay fuzz_finds/FILE.json`, or `make fuzz REPLAY=fuzz_finds/FILE.json`, runs one find again.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fuzz import CORPORA
from fuzz.cases import RIGHT
from fuzz.watch import HEADINGS, ROOT, replay, run_corpus
from mindrepvgg.text import table


def main() -> int:
    """Run or replay; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="for all corpora together (%(default)s)")
    parser.add_argument("--corpus", action="append", choices=CORPORA, help="only this one; may be repeated")
    parser.add_argument("--jobs", type=int, default=2, help="corpora at a time (%(default)s)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**9), help="default: another one")
    parser.add_argument("--finds", type=Path, default=ROOT / "fuzz_finds", help="where finds are kept (%(default)s)")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run one find again, and say what comes of it")
    arguments = parser.parse_args()
    if arguments.replay:
        outcome, text = replay(json.loads(arguments.replay.read_text())["corpus"], arguments.replay)
        print(f"{outcome}\n{text}")
        return int(outcome not in RIGHT)
    names = arguments.corpus or CORPORA
    jobs = min(arguments.jobs, len(names))
    seconds = arguments.minutes * 60 * jobs / len(names)
    print(f"seed {arguments.seed}: {len(names)} corpora, {seconds:.0f} s each, {jobs} at a time", flush=True)
    with ThreadPoolExecutor(jobs) as pool:
        tallies = list(pool.map(lambda name: run_corpus(name, arguments.seed, seconds, arguments.finds), names))
    print(table([HEADINGS, *(tally.row() for tally in tallies)]))
    for tally in tallies:
        for alike, count in tally.finds.most_common():
            print(f"{tally.name}: {count} x {alike}")
    found = sum(tally.finds.total() for tally in tallies)
    print(
        f"{found} finds, in {arguments.finds}; make fuzz REPLAY=FILE runs one again" if found else "nothing was found"
    )
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
