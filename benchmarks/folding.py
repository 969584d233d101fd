"""Fold every network and write into docs/fusing.md how far its deploy form is from its branches.

python benchmarks/folding.py                # all of them: a quarter of an hour, 4 GB
python benchmarks/folding.py mobileone_s0   # only print
"""

import sys
from pathlib import Path

import mindspore as ms
import numpy as np
from sections import replace_section

from mindrepvgg import to_deploy, verify_equivalence
from mindrepvgg.models.repvgg import build
from mindrepvgg.models.shapes import parameter_shapes
from mindrepvgg.models.synthetic import parameter_values, uniform
from mindrepvgg.models.variants import TRAIN, find, published_models
from mindrepvgg.text import markdown_table

PAGE = Path(__file__).parents[1] / "docs" / "fusing.md"


def folded(name):
    """A row: the largest difference of a block's outputs, of the logits, and of a weight from float64."""
    variant = find(name)
    arrays = parameter_values(parameter_shapes(variant, TRAIN))
    net = build(variant, arrays=arrays, copy=False).set_train(False)
    images = (np.sqrt(3) * uniform("images", (2, 3, 64, 64))).astype(np.float32)
    report = verify_equivalence(net, to_deploy(net), images)
    worst = [max(getattr(block, key) for block in report.blocks) for key in ("max_rel", "weight_rel")]
    return f"`{name}`", len(report.blocks), *(f"{value:.1e}" for value in (report.max_rel, *worst))


def main(names):
    """Fold the networks of these names; all of them, into the page, for none."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    headings = ["network", "blocks", "logits", "worst block", "worst weight"]
    rows = []
    for name in names or published_models():
        rows.append(folded(name))
        print(*rows[-1], flush=True)
    if not names:
        replace_section(PAGE, "folding", markdown_table(headings, rows))


if __name__ == "__main__":
    main(sys.argv[1:])
