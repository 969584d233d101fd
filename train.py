"""Train a network: python train.py -c configs/quickstart.yaml [--key value ...]"""

import shlex
import sys

from mindrepvgg import cli, recipe
from mindrepvgg.errors import UserError


def main(argv=None):
    """Run a recipe to its end; 130 after Ctrl-C, with the state saved."""
    parser = cli.ArgumentParser(
        description="Train a RepVGG in its multi-branch form.", usage="%(prog)s -c YAML [--KEY VALUE ...]"
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="CKPT",
        help="continue an interrupted run exactly: the one in ckpt_save_dir, or the one that saved CKPT (*_last.ckpt)",
    )
    parser.add_argument("--overwrite", action="store_true", help="start anew in a folder that already holds a run")
    recipe.add_recipe_arguments(parser)
    arguments = parser.parse_args(argv)
    if arguments.resume is not None and arguments.overwrite:
        raise UserError("--resume continues a run and --overwrite discards it; give one of the two")
    if arguments.resume and arguments.config is None:
        from mindrepvgg.train.resume import recipe_of_run

        overrides = recipe.overrides_from_arguments(arguments)
        chosen = recipe_of_run(arguments.resume).replace(recipe.COMMAND_LINE, **overrides)
    else:
        chosen = recipe.recipe_from_arguments(arguments)

    from mindrepvgg.train import Trainer
    from mindrepvgg.train.resume import find_last

    resume = arguments.resume
    if resume == "":
        resume = find_last(chosen.ckpt_save_dir, chosen.model)
    result = Trainer(chosen, resume, arguments.overwrite).run()
    if not result.finished:
        print(f"stopped; the state is saved. To continue: python train.py --resume {_quoted(result.last)}")
        return 130
    checkpoint = result.best if result.best.exists() else result.last
    print(f"done: {checkpoint}; curves in {result.curves}")
    deployed = checkpoint.with_name(f"{chosen.model}_deploy.ckpt")
    print(f"validate it: python validate.py --ckpt_path {_quoted(checkpoint)}")
    print(f"fuse it:     python convert.py {_quoted(checkpoint)} {_quoted(deployed)}")
    return 0


def _quoted(path):
    """The path as a shell takes it, for the commands that are shown."""
    return shlex.quote(str(path))


if __name__ == "__main__":
    sys.exit(cli.run(main))
