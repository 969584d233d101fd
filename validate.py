"""Validate a checkpoint: python validate.py --ckpt_path FILE [--data_dir FOLDER]"""

import json
import sys

from mindrepvgg import cli

_OVERRIDES = ("dataset", "data_dir", "batch_size", "num_parallel_workers", "image_resize", "crop_pct", "interpolation")


def main(argv=None):
    """Print top-1, top-5, loss and speed of a checkpoint on its validation split."""
    parser = cli.ArgumentParser(description="Validate a checkpoint, in train or deploy form: it knows the rest itself.")
    parser.add_argument("--ckpt_path", required=True, metavar="FILE", help=".ckpt or .safetensors of this package")
    for name in _OVERRIDES:
        parser.add_argument(f"--{name}", metavar="VALUE", help="as in the recipe; default: as the checkpoint says")
    parser.add_argument("--device_target", default="auto", choices=("auto", "CPU", "Ascend"))
    parser.add_argument("--mode", type=int, default=0, choices=(0, 1), help="0: graph mode; 1: PyNative mode")
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")
    arguments = parser.parse_args(argv)

    from mindrepvgg import runtime
    from mindrepvgg.checkpoint import form_of, load_checkpoint
    from mindrepvgg.evaluate import check_classes, eval_loader, evaluate, recipe_of

    device = runtime.setup(arguments.device_target, arguments.mode)
    net = load_checkpoint(arguments.ckpt_path)
    recipe = recipe_of(net, {name: getattr(arguments, name) for name in _OVERRIDES if getattr(arguments, name)})
    loader = eval_loader(recipe)
    check_classes(net, loader.source)
    result = evaluate(net, loader, show_progress=not arguments.json)
    facts = {"model": recipe.model, "form": form_of(net), "dataset": recipe.dataset, "device": device, **vars(result)}
    if arguments.json:
        print(json.dumps(facts))
    else:
        print("{model} in {form} form on {dataset}: {num_images} images".format(**facts))
        print("top-1 {top1:.2f}%  top-5 {top5:.2f}%  loss {loss:.4f}".format(**facts))
        print("{images_per_second:.0f} images/s on {device}".format(**facts))
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
