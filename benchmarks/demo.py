"""Train on real digits, validate, fuse, validate again, and print a table of what came out.

--update_readme writes the table of the last run into README.md, between its markers, and runs nothing else.
"""

import functools
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path

from sections import replace_section

from mindrepvgg.cli import entry
from mindrepvgg.errors import UserError

_ROOT = Path(__file__).resolve().parents[1]
_FOLDER = Path("outputs/demo")
_CHECKPOINTS = _FOLDER / "repvgg_nano_best.ckpt", _FOLDER / "repvgg_nano_deploy.ckpt"
_SPEED_ROUNDS = 5


def main(argv=None):
    """Run the commands that a user would type, then compare both forms on the held-out images."""
    parser = entry.ArgumentParser(description=__doc__)
    parser.add_argument("--update_readme", action="store_true", help="write the table of the last run into README.md")
    if parser.parse_args(argv).update_readme:
        return _update_readme()
    start = time.perf_counter()
    trained, deployed = _CHECKPOINTS
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
    print(f"\n{report()}")
    print(f"curves: {_FOLDER / 'curves.png'}; log: {_FOLDER / 'log.jsonl'}")
    print(f"all of it took {time.perf_counter() - start:.0f} s")
    return 0


def _update_readme():
    if not all((_ROOT / path).exists() for path in _CHECKPOINTS):
        raise UserError(f"{_ROOT / _FOLDER} has no finished demo; run make demo first")
    replace_section(_ROOT / "README.md", "results", report())
    return 0


def report() -> str:
    """A markdown table of both forms on the held-out images, and how far their logits lie apart."""
    from mindrepvgg import load_checkpoint, verify_equivalence
    from mindrepvgg.data.loaders import eval_loader
    from mindrepvgg.evaluation.loop import evaluate
    from mindrepvgg.recipe.network import recipe_of
    from mindrepvgg.runtime import device
    from mindrepvgg.runtime.timing import take_turns
    from mindrepvgg.text import markdown_table

    device.setup("CPU")
    nets = [load_checkpoint(_ROOT / path) for path in _CHECKPOINTS]
    loader = eval_loader(recipe_of(nets[0], {}))
    contestants = {"deploy" if net.deploy else "train": functools.partial(evaluate, net, loader) for net in nets}
    rounds = take_turns(contestants, _SPEED_ROUNDS)
    rows = [
        (
            form,
            f"{found[0].correct} of {found[0].num_images}",
            f"{found[0].top1:.2f}%",
            f"{sum(parameter.size for parameter in net.trainable_params()):,}",
            f"{statistics.median(result.images_per_second for result in found):.0f}",
        )
        for net, (form, found) in zip(nets, rounds.items(), strict=True)
    ]
    proof = verify_equivalence(*nets, next(iter(loader))[0])
    table = markdown_table(("form", "correct", "top-1", "parameters", "images/s"), rows)
    return f"{table}\n\nlargest logit difference: {proof.max_abs:.1e}, {proof.max_rel:.1e} of the largest logit"


if __name__ == "__main__":
    sys.exit(entry.run(main))
