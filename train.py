"""Train a network: python train.py -c configs/quickstart.yaml [--key value ...]"""

import sys

from mindrepvgg.cli import entry
from mindrepvgg.errors import UserError
from mindrepvgg.recipe import schema, sources

_FLAGS = {
    "overwrite": "start anew in a folder that already holds a run",
    "show_config": "print every key of the recipe with its source, and stop",
    "show_param_groups": "print the network's parameters, each with its weight decay, and stop",
    "dry_run": "build everything, compile and run a few steps, print memory and time, and stop",
    "profile": "record the first steps after compilation with MindSpore's profiler into ckpt_save_dir/profile",
}


def main(argv=None):
    """Run a recipe to its end; 130 after Ctrl-C, with the state saved."""
    parser = entry.ArgumentParser(
        description="Train a RepVGG in its multi-branch form.", usage="%(prog)s -c YAML [--KEY VALUE ...]"
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="CKPT",
        help="continue an interrupted run exactly: the one in ckpt_save_dir, or the one that saved CKPT (*_last.ckpt)",
    )
    for name, text in _FLAGS.items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    sources.add_recipe_arguments(parser)
    arguments = parser.parse_args(argv)
    if arguments.resume is not None and arguments.overwrite:
        raise UserError("--resume continues a run and --overwrite discards it; give one of the two")
    shows = arguments.show_config or arguments.show_param_groups
    if arguments.resume and arguments.config is None:
        from mindrepvgg.training.resume import recipe_of_run

        overrides = sources.overrides_from_arguments(arguments)
        chosen = recipe_of_run(arguments.resume).replace(schema.COMMAND_LINE, **overrides)
    else:
        chosen = sources.recipe_from_arguments(arguments, needs_data=not shows)
    return _show(chosen, arguments) if shows else _train(chosen, arguments)


def _show(chosen, arguments):
    if arguments.show_config:
        print(sources.explain_recipe(chosen), end="")
    if arguments.show_param_groups:
        from mindrepvgg.runtime.ranks import Ranks
        from mindrepvgg.training.assemble import build_network
        from mindrepvgg.training.optim import format_parameter_groups, parameter_groups

        net = build_network(chosen, Ranks())
        print(format_parameter_groups(parameter_groups(net, chosen.weight_decay, chosen.decay_rule)))
    return 0


def _train(chosen, arguments):
    from mindrepvgg.training.folder import find_last
    from mindrepvgg.training.trainer import Trainer

    resume = arguments.resume
    if resume == "":
        resume = find_last(chosen.ckpt_save_dir, chosen.model)
    result = Trainer(chosen, resume, arguments.overwrite).run(dry_run=arguments.dry_run, profile=arguments.profile)
    return 0 if result is None or result.finished else 130


if __name__ == "__main__":
    sys.exit(entry.run(main))
