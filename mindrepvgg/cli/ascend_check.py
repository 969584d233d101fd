"""Check a device against what a CPU computed, network by network, and write one report (docs/ascend.md).

    mindrepvgg ascend-check                                  # on Ascend every network and block, on CPU small ones
    mindrepvgg ascend-check --models repvgg_a0 repvgg_b1g2   # these
    mindrepvgg ascend-check --models blocks                  # every block, in a small network of its own
    msrun --worker_num 8 --local_worker_num 8 --join True --log_dir msrun_log python -m mindrepvgg ascend-check

The exit status is 1 when a check failed, in any of the processes.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from mindrepvgg.cli import options
from mindrepvgg.cli.entry import ArgumentParser
from mindrepvgg.files import atomic_write, write_json


def main(argv: Sequence[str] | None = None) -> int:
    """Run the checks one after the other; the report is written anew after each, so that none is lost."""
    parser = ArgumentParser("ascend-check", description=__doc__)
    parser.add_argument("--models", nargs="+", metavar="NAME", help="networks, block_KIND, blocks (Ascend: all)")
    parser.add_argument("--precision", nargs="+", default=["float32", "float16"], choices=("float32", "float16"))
    options.add_device(parser)
    parser.add_argument("--jit_level", default="auto", choices=("auto", "O0", "O1", "O2"))
    parser.add_argument("--default_precision", action="store_true", help="let the device compute float32 as it likes")
    parser.add_argument("--report", type=Path, default=Path("ascend_report.md"), metavar="FILE")
    options.add_json(parser, "write all figures too, as JSON beside the report")
    parser.add_argument("--reference", type=Path, metavar="FILE", help="what the CPU computed (default: the package's)")
    parser.add_argument("--record", type=Path, metavar="FILE", help="compute a reference on this CPU and write it")
    arguments = parser.parse_args(argv)

    from tqdm import tqdm

    from mindrepvgg.measure import ascend_check, ascend_check_report, checked_networks, device_checks
    from mindrepvgg.runtime import device

    models = checked_networks.names(arguments.models or ())
    if arguments.record:
        device.setup("CPU")
        names = models or (*ascend_check.ON_CPU[:1], *ascend_check.ON_ASCEND)
        write_json(arguments.record, ascend_check.record(tqdm(names, disable=not sys.stderr.isatty())))
        return 0
    reference = ascend_check.read_reference(arguments.reference or ascend_check.REFERENCE)
    target = device.setup(arguments.device_target, jit_level=arguments.jit_level)
    meeting, group = device_checks.join()
    path = arguments.report if group.is_first else arguments.report.with_suffix(f".rank{group.rank}.md")
    facts = ascend_check_report.environment(target, device.choose_jit_level(arguments.jit_level, target).reason)
    smi, results = ascend_check_report.npu_smi(), [meeting]

    def save(under_way=""):
        with atomic_write(path, "w") as stream:
            stream.write(ascend_check_report.report(facts, results, smi, under_way))
        if arguments.json:
            write_json(path.with_suffix(".json"), ascend_check_report.report_json(facts, results, smi, under_way))

    models = models or list(ascend_check.ON_ASCEND if target == "Ascend" else ascend_check.ON_CPU)
    todo = list(ascend_check.checks(target, group, models, arguments.precision, reference, arguments.default_precision))
    print(meeting.format(), flush=True)
    for name, check in (bar := tqdm(todo, unit="check", disable=not sys.stderr.isatty())):
        bar.set_description(name)
        save(under_way=name)
        results.append(ascend_check_report.run_check(name, check))
        if group.is_first or results[-1].status == ascend_check_report.FAIL:  # once is enough of what all eight pass
            bar.write(results[-1].format())
            sys.stdout.flush()
    save()
    print(f"report: {path}")
    failed = group.any(any(result.status == ascend_check_report.FAIL for result in results))
    group.leave()
    return 1 if failed else 0
