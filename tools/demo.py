"""The whole story on real digits: train, validate, fuse, validate again, and a table of what came out."""

import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path

from mindrepvgg.cli import entry

_ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(_ROOT))  # run from a checkout, whether the package is installed or not


_FOLDER = Path("outputs/demo")
CHECKPOINTS = _FOLDER / "repvgg_nano_best.ckpt", _FOLDER / "repvgg_nano_deploy.ckpt"
_SPEED_ROUNDS = 5


def main(argv=None):
    """Run the commands a user would type, then compare both forms on the held-out images."""
    entry.ArgumentParser(description=__doc__).parse_args(argv)
    start = time.perf_counter()
    trained, deployed = CHECKPOINTS
    for command in (
        f"train.py -c configs/quickstart.yaml --ckpt_save_dir {_FOLDER} --overwrite",
        f"validate.py --ckpt_path {trained}",
        f"convert.py {trained} {deployed}",
        f"validate.py --ckpt_path {deployed}",
    ):
        print(f"\n$ python {command}", flush=True)
        status = subprocess.run([sys.executable, *shlex.split(command)], cwd=_ROOT, check=False).returncode
        if status:
            return status
    print()
    print(report(_ROOT / trained, _ROOT / deployed))
    print(f"curves: {_FOLDER / 'curves.png'}; log: {_FOLDER / 'log.jsonl'}")
    print(f"all of it took {time.perf_counter() - start:.0f} s")
    return 0


def report(*paths) -> str:
    """A markdown table of both forms on the held-out images, and how far their logits lie apart."""
    from mindrepvgg import load_checkpoint, verify_equivalence
    from mindrepvgg.data.loaders import eval_loader
    from mindrepvgg.evaluation.evaluate import evaluate
    from mindrepvgg.recipe.network import recipe_of
    from mindrepvgg.runtime import device

    device.setup("CPU")
    nets = [load_checkpoint(path) for path in paths]
    loader = eval_loader(recipe_of(nets[0], {}))
    # In turn, so that a slow spell of the machine meets both forms.
    rounds = [[evaluate(net, loader) for net in nets] for _ in range(_SPEED_ROUNDS)]
    speeds = [
        statistics.median(result.images_per_second for result in results) for results in zip(*rounds, strict=True)
    ]
    lines = ["| form   | correct     |  top-1 | parameters | images/s |", "|---|---|---|---|---|"]
    for net, result, speed in zip(nets, rounds[0], speeds, strict=True):
        form = "deploy" if net.deploy else "train"
        parameters = sum(parameter.size for parameter in net.trainable_params())
        correct = f"{result.correct} of {result.num_images}"
        lines.append(f"| {form:<6} | {correct:<11} | {result.top1:5.2f}% | {parameters:>10,} | {speed:>8.0f} |")
    images = next(iter(loader))[0]
    difference = verify_equivalence(*nets, images)
    lines += ["", f"largest logit difference: {difference.max_abs:.1e}, {difference.max_rel:.1e} of the largest logit"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(entry.run(main))
