"""Print a network's layers, parameters, MACs and memory, in train and deploy form.

    mindrepvgg summary repvgg_b3 --image_size 320 --batch_size 32
    mindrepvgg summary repvgg --model_args '{num_blocks: [1, 1, 2, 1], widths: [8, 8, 16, 24, 32]}' --csv own.csv
    mindrepvgg summary repvgg_a0 --block acb --block_where 'stage1.*'
    mindrepvgg summary best.ckpt --json

The lines below the table say what is counted.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from mindrepvgg.cli import options
from mindrepvgg.cli.entry import ArgumentParser
from mindrepvgg.errors import UserError
from mindrepvgg.models.network_spec import BLOCK_KEYS
from mindrepvgg.recipe.schema import KEYS
from mindrepvgg.text import counted, quoted


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; a name answers at once, a checkpoint once it is read."""
    parser = ArgumentParser("summary", description=__doc__)
    parser.add_checkpoint("NAME|CKPT", f"repvgg_a0 ..., or a {options.CHECKPOINT}")
    parser.add_argument("--model_args", metavar="MAPPING", help="sizes of a network of your own, as in the recipe")
    for key in BLOCK_KEYS:
        parser.add_argument(f"--{key}", metavar=KEYS[key].kind.metavar, help="as in the recipe")
    parser.add_argument("--num_classes", metavar="N", help="default: the checkpoint's, or 1000")
    parser.add_argument("--image_size", metavar="N|H,W", help="pixels; default: what the checkpoint says, or 224")
    parser.add_argument(
        "--batch_size", metavar="N", default="1", help="images whose activations are kept (%(default)s)"
    )
    options.add_weights(parser)
    options.add_json(parser)
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the layers' exact figures too")
    arguments = parser.parse_args(argv)

    from mindrepvgg.models import costs, summary, variants
    from mindrepvgg.recipe.sources import load_recipe

    asked = (("num_classes", "num_classes"), ("image_size", "image_resize"), ("batch_size", "batch_size"))
    sizes = {name: _read(name, key, getattr(arguments, name)) for name, key in asked if getattr(arguments, name)}
    layout = options.given(arguments, ("model_args", *BLOCK_KEYS))
    name, path = arguments.ckpt_path, Path(arguments.ckpt_path)
    if variants.normalise_name(name) in variants.list_models() or not (path.exists() or path.suffix):
        recipe = load_recipe(None, {"model": name, "model_args": {}, **layout})
        found, facts = summary.summarise(recipe.variant, **sizes), None
    elif layout:
        raise UserError(f"--{next(iter(layout))} is for the names of networks; a checkpoint, as {path}, knows its own")
    else:
        found, facts = _of_checkpoint(path, arguments.weights, sizes)
    if arguments.csv:
        costs.write_csv(found, arguments.csv)
    if arguments.json:
        print(json.dumps({**found.to_dict(), "checkpoint": facts}))
    else:
        print(found.format())
        if facts:
            print("{path}: {model} in {form} form, written by {dialect}".format(**facts))
    return 0


def _read(option, key, text):
    """A command line's number as the recipe's `key` reads it."""
    kind = KEYS[key].kind
    try:
        return kind.read(text)
    except (TypeError, ValueError):
        raise UserError(f"{option} (={quoted(text)}) must be {kind.expected}") from None


def _of_checkpoint(path, weights, sizes):
    """The summary of a checkpoint's network, and what the file is."""
    from mindrepvgg.models.summary import summarise
    from mindrepvgg.weights import convert, load

    imported = load.import_weights(path, weights, allow_nonfinite=True)
    network, facts = imported.recognised, convert.describe(imported)
    told = {"image_size": facts["image_size"]} if "image_size" in facts else {}
    sizes = {"num_classes": network.num_classes, "in_channels": network.in_channels, **told, **sizes}
    found = summarise(network.variant, **sizes, aux_heads=network.deploy or network.has_aux)
    if found.num_classes != network.num_classes:
        raise UserError(
            f"{path} is for {counted(network.num_classes, 'class')}, not {found.num_classes}; drop --num_classes"
        )
    return found, facts
