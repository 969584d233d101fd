"""Validate a checkpoint: python validate.py --ckpt_path FILE [--data_dir FOLDER] [--cross_check]"""

import json
import sys

from mindrepvgg import cli

_OVERRIDES = (
    *("dataset", "data_dir", "val_share", "batch_size", "num_parallel_workers"),
    *("image_resize", "crop_pct", "interpolation", "mean", "std"),
)


def main(argv=None):
    """Print top-1, top-5, loss and speed of a checkpoint on its validation split, or how far it is from PyTorch."""
    parser = cli.ArgumentParser(description="Validate a checkpoint, in train or deploy form: it knows the rest itself.")
    parser.add_argument("--ckpt_path", required=True, metavar="FILE", help="checkpoint of this or any RepVGG project")
    for name in _OVERRIDES:
        parser.add_argument(f"--{name}", metavar="VALUE", help="as in the recipe; default: as the checkpoint says")
    parser.add_argument("--weights", default="raw", choices=("raw", "ema"), help="ema: the averaged copy in FILE")
    parser.add_argument("--device_target", default="auto", choices=("auto", "CPU", "Ascend"))
    parser.add_argument("--mode", type=int, default=0, choices=(0, 1), help="0: graph mode; 1: PyNative mode")
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")
    check = parser.add_argument_group("cross-check", "compare with PyTorch on the same images; status 1 if they differ")
    check.add_argument("--cross_check", nargs="?", const="torch", choices=("torch", "timm"), help="the other side")
    check.add_argument("--reference", metavar="FILE", help="what PyTorch reads: the original of FILE (default: FILE)")
    check.add_argument(
        "--rtol", type=float, default=1e-4, help="largest difference over the largest logit (%(default)s)"
    )
    arguments = parser.parse_args(argv)

    from mindrepvgg import runtime
    from mindrepvgg.pretrained import load_weights

    device = runtime.setup("CPU" if arguments.cross_check else arguments.device_target, arguments.mode)
    net = load_weights(arguments.ckpt_path, arguments.weights)
    overrides = {name: getattr(arguments, name) for name in _OVERRIDES if getattr(arguments, name)}
    report = _cross_check if arguments.cross_check else _validate
    return report(net, overrides, device, arguments)


def _validate(net, overrides, device, arguments):
    from mindrepvgg.checkpoint import form_of
    from mindrepvgg.evaluate import check_classes, eval_loader, evaluate, recipe_of

    recipe = recipe_of(net, overrides)
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


def _cross_check(net, overrides, _device, arguments):
    from mindrepvgg.crosscheck import check_file

    options = (arguments.reference, arguments.cross_check, arguments.weights == "ema", arguments.rtol)
    checked, images = check_file(arguments.ckpt_path, net, overrides, *options)
    print(
        json.dumps({**checked.to_dict(), "images": images}) if arguments.json else f"on {images}:\n{checked.format()}"
    )
    return 0 if checked.passed else 1


if __name__ == "__main__":
    sys.exit(cli.run(main))
