"""Print a network's layers, parameters, MACs and memory, in train and deploy form: python tools/summary.py NAME|CKPT

    python tools/summary.py repvgg_b3 --image_size 320 --batch_size 32
    python tools/summary.py repvgg --model_args '{num_blocks: [1, 1, 2, 1], widths: [8, 8, 16, 24, 32]}' --csv own.csv
    python tools/summary.py best.ckpt --json

What is counted, and how, stands below the table.
"""

import json
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(_ROOT))  # run from a checkout, whether the package is installed or not


from mindrepvgg.cli import entry
from mindrepvgg.errors import UserError
from mindrepvgg.models import summary, variants
from mindrepvgg.recipe.schema import KEYS
from mindrepvgg.recipe.sources import load_recipe


def main(argv=None):
    """Print the table; a name answers at once, a checkpoint once it is read."""
    parser = entry.ArgumentParser(description="Layers, parameters, MACs and memory of a network, in both of its forms.")
    parser.add_argument("network", metavar="NAME|CKPT", help="repvgg_a0 ..., or a checkpoint of any RepVGG project")
    parser.add_argument("--model_args", metavar="MAPPING", help="sizes of the network 'repvgg', as in the recipe")
    parser.add_argument("--num_classes", metavar="N", help="default: the checkpoint's, or 1000")
    parser.add_argument("--image_size", metavar="N|H,W", help="pixels; default: what the checkpoint says, or 224")
    parser.add_argument(
        "--batch_size", metavar="N", default="1", help="images whose activations are kept (%(default)s)"
    )
    parser.add_argument("--weights", default="raw", choices=("raw", "ema"), help="ema: the averaged copy in CKPT")
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the layers' exact figures too")
    arguments = parser.parse_args(argv)

    asked = (("num_classes", "num_classes"), ("image_size", "image_resize"), ("batch_size", "batch_size"))
    sizes = {name: _read(name, key, getattr(arguments, name)) for name, key in asked if getattr(arguments, name)}
    path = Path(arguments.network)
    if variants.normalise_name(arguments.network) in variants.list_models() or not (path.exists() or path.suffix):
        recipe = load_recipe(None, {"model": arguments.network, "model_args": arguments.model_args or {}})
        found, facts = summary.summarise(recipe.variant, **sizes), None
    elif arguments.model_args:
        raise UserError(f"--model_args is for the name 'repvgg'; a checkpoint, as {path}, knows its sizes")
    else:
        found, facts = _of_checkpoint(path, arguments.weights, sizes)
    if arguments.csv:
        summary.write_csv(found, arguments.csv)
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
        raise UserError(f"{option} (={text!r}) must be {kind.expected}") from None


def _of_checkpoint(path, weights, sizes):
    """The summary of a checkpoint's network, and what the file is."""
    from mindrepvgg.weights import convert, load

    imported = load.import_weights(path, weights, allow_nonfinite=True)
    network, facts = imported.recognised, convert.describe(imported)
    told = {"image_size": facts["image_size"]} if "image_size" in facts else {}
    sizes = {"num_classes": network.num_classes, "in_channels": network.in_channels, **told, **sizes}
    found = summary.summarise(network.variant, **sizes, aux_heads=network.deploy or network.has_aux)
    if found.num_classes != network.num_classes:
        raise UserError(f"{path} is for {network.num_classes} classes, not {found.num_classes}; drop --num_classes")
    return found, facts


if __name__ == "__main__":
    sys.exit(entry.run(main))
