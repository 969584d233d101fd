"""Train a network in its multi-branch form, as a recipe says.

    mindrepvgg train -c quickstart --ckpt_save_dir runs/digits
    mindrepvgg train -c folder --data_dir photos --show_batch batch.png
    mindrepvgg train -c folder --data_dir photos --ckpt_save_dir runs/photos
    mindrepvgg train -c finetune --data_dir photos --ckpt_save_dir runs/finetuned
    msrun --worker_num 8 python -m mindrepvgg train -c repvgg_a1 --data_dir /data/imagenet

The exit status is 130 when the run was stopped, by Ctrl-C for example; the state is saved then, for --resume.
"""

from collections.abc import Sequence

from mindrepvgg.cli.entry import ArgumentParser
from mindrepvgg.errors import UserError
from mindrepvgg.recipe import configs, sources
from mindrepvgg.recipe.provenance import COMMAND_LINE
from mindrepvgg.text import quoted

_FLAGS = {
    "overwrite": "start anew in a folder that already holds a run",
    "show_config": "print every key of the recipe with its source, and stop",
    "show_param_groups": "print the network's parameters, each with its weight decay, and stop",
    "dry_run": "build everything, compile and run a few steps, print memory and time, and stop",
    "profile": "record the first steps after compilation with MindSpore's profiler into ckpt_save_dir/profile",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a recipe to its end; 130 after Ctrl-C, with the state saved."""
    parser = ArgumentParser("train", description=__doc__, usage="%(prog)s -c RECIPE [--KEY VALUE ...]")
    parser.add_argument("--list", action="store_true", help="print the names of the recipes, and stop")
    parser.add_argument(
        "--resume",
        nargs="?",
        const=True,
        default=False,
        metavar="PLACE",
        help="continue a run exactly: the one in ckpt_save_dir, in the folder PLACE, or the one that saved PLACE "
        "(*_last.ckpt); without -c, with its own recipe; a larger --epoch_size prolongs it",
    )
    parser.add_argument(
        "--show_batch",
        nargs="?",
        const="batch.png",
        metavar="FILE.png",
        help="draw the first batch of pictures as training sees them (into %(const)s), and stop",
    )
    for name, text in _FLAGS.items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    sources.add_recipe_arguments(parser)
    arguments = parser.parse_args(argv)
    if arguments.list:
        print(configs.listing())
        return 0
    resumes = arguments.resume is not False
    if resumes and arguments.overwrite:
        raise UserError("--resume continues a run and --overwrite discards it; give one of the two")
    shows = arguments.show_config or arguments.show_param_groups or arguments.show_batch
    if resumes:
        from mindrepvgg.training.resume import find_run

        overrides = sources.overrides_from_arguments(arguments)
        own = None if arguments.config is None else sources.load_recipe(arguments.config, overrides)
        recipe, arguments.resume = find_run(arguments.resume, own, overrides, COMMAND_LINE)
    else:
        recipe = sources.recipe_from_arguments(arguments, needs_data=not shows or bool(arguments.show_batch))
    return _show(recipe, arguments) if shows else _train(recipe, arguments)


def _show(recipe, arguments):
    if arguments.show_batch:
        from mindrepvgg.data.show_batch import draw_batch

        if not arguments.show_batch.lower().endswith(".png"):
            raise UserError(f"show_batch (={quoted(arguments.show_batch)}) must end in .png")
        print(f"{arguments.show_batch}: {draw_batch(recipe, arguments.show_batch)}")
    if arguments.show_config:
        print(sources.explain_recipe(recipe), end="")
    if arguments.show_param_groups:
        from mindrepvgg.runtime.ranks import Ranks
        from mindrepvgg.training.assemble import build_network
        from mindrepvgg.training.optim import format_parameter_groups, parameter_groups

        # Without data, the network of ImageNet's classes: only the head's shape differs.
        net = build_network(recipe if recipe.num_classes else recipe.replace(num_classes=1000), Ranks())
        rows = parameter_groups(net, recipe.weight_decay, recipe.decay_rule, recipe.layer_decay)
        print(format_parameter_groups(rows))
    return 0


def _train(recipe, arguments):
    from mindrepvgg import api

    flags = ("resume", "overwrite", "dry_run", "profile")
    result = api.train(recipe, **{name: getattr(arguments, name) for name in flags})
    return 0 if result is None or result.finished else 130
