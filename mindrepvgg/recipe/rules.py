"""What keys of a recipe ask of each other: values that are possible one by one and do not fit together."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from mindrepvgg.errors import RecipeError, UserError
from mindrepvgg.models import variants
from mindrepvgg.models.block_kinds import KINDS
from mindrepvgg.models.network_spec import BLOCK_KEYS, NetworkSpec
from mindrepvgg.models.scales import TARGET
from mindrepvgg.recipe.auto_augment import parse_policy
from mindrepvgg.recipe.provenance import CODE, COMMAND_LINE, describe, place
from mindrepvgg.text import listed, nearest, quoted

MOST_PIXELS = 1 << 31  # of all channels of a batch, in float32 on one device


def check(recipe, shown: Mapping[str, str]):
    """Refuse a recipe whose values do not fit each other.

    Args:
        recipe: the `Recipe`, each of whose values is possible.
        shown: every key with its value and where that came from, as `describe` words it.

    Raises:
        RecipeError: the first conflict, on one line.
    """
    for rules in (
        _network,
        _images,
        _schedule,
        _optimizer,
        _precision,
        _frozen,
        _custom_l2,
        _repoptimizer,
        _quantization,
        _checkpoints,
    ):
        for conflict in rules(recipe, shown):
            raise RecipeError(conflict)


def _network(recipe, shown) -> Iterator[str]:
    for key, only, reason in recipe.variant.fixed_keys:
        if getattr(recipe, key) != only:
            yield f"{shown[key]} does not go with {shown['model']}: {reason}; leave it out"


def _images(recipe, shown) -> Iterator[str]:
    for name in ("mean", "std"):
        if len(getattr(recipe, name)) != recipe.in_channels:
            yield f"{shown[name]} must have one number for each of {shown['in_channels']}"
    height, width = recipe.image_size
    if recipe.batch_size * recipe.in_channels * height * width > MOST_PIXELS:
        yield (
            f"{shown['batch_size']} images of {shown['image_resize']} need more than {MOST_PIXELS >> 28} GiB a step; "
            "lower one of them"
        )
    if recipe.crop_padding >= min(recipe.image_size):
        yield f"{shown['crop_padding']} must be less than {shown['image_resize']}, so that some of the picture is seen"
    if recipe.auto_augment is not None:
        try:
            parse_policy(recipe.auto_augment)
        except ValueError as error:
            yield f"{shown['auto_augment']}: {error}"


def _schedule(recipe, shown) -> Iterator[str]:
    warmup, total, cycles = recipe.warmup_epochs, recipe.epoch_size, recipe.num_cycles
    # step_decay's decay_epochs is the length of a step, which may be longer than what is left of the run.
    decay = 0 if recipe.scheduler == "step_decay" else recipe.decay_epochs or 0
    if recipe.min_lr > recipe.lr:
        yield f"{shown['min_lr']} must be at most {shown['lr']}"
    if warmup > total:
        yield f"{shown['warmup_epochs']} must be at most {shown['epoch_size']}"
    if warmup + decay > total:
        yield (
            f"{shown['warmup_epochs']} and {shown['decay_epochs']} together must be at most {shown['epoch_size']}; "
            "decay_epochs null takes what is left"
        )
    if recipe.scheduler == "cosine_decay" and cycles > 1 and warmup + cycles * (decay or total - warmup) > total:
        yield (
            f"{shown['num_cycles']} of {shown['decay_epochs']} must fit into {shown['epoch_size']} after "
            f"{shown['warmup_epochs']}"
        )
    if recipe.scheduler == "one_cycle" and warmup:
        yield f"{shown['warmup_epochs']} must be 0 with {shown['scheduler']}, which begins with a rise of its own"
    if recipe.scheduler == "step_decay" and recipe.decay_epochs is None:
        yield f"{shown['scheduler']} needs decay_epochs, the epochs between two steps"
    if recipe.decay_rate > 1 and recipe.scheduler in ("step_decay", "multi_step_decay", "exponential_decay"):
        yield f"{shown['decay_rate']} must be at most 1 with {shown['scheduler']}: the learning rate would grow"


def _optimizer(recipe, shown) -> Iterator[str]:
    if recipe.use_nesterov and not (recipe.opt in ("momentum", "sgd") and recipe.momentum):
        yield f"{shown['use_nesterov']} needs SGD with momentum, not {shown['opt']} with {shown['momentum']}"


def _precision(recipe, shown) -> Iterator[str]:
    if not recipe.drop_overflow_update and recipe.loss_scale_type != "fixed":
        yield (
            f"{shown['drop_overflow_update']} needs loss_scale_type fixed: a dynamic scale finds its size by skipping"
        )
    if recipe.amp_dtype != "float16" and recipe.amp_level != "O2":
        yield f"{shown['amp_dtype']} needs amp_level O2, not {shown['amp_level']}"


def _frozen(recipe, shown) -> Iterator[str]:
    if recipe.freeze_stages and not recipe.pretrained:
        yield f"{shown['freeze_stages']} needs pretrained: stages that are not trained keep the weights they start with"
    if recipe.freeze_bn and recipe.precise_bn_steps:
        yield f"{shown['precise_bn_steps']} must be 0 with {shown['freeze_bn']}, which leaves BN as it is"


def _custom_l2(recipe, shown) -> Iterator[str]:
    if not recipe.custom_l2:
        return
    specs = recipe.variant.block_specs() if recipe.variant.is_family else ()
    without = {spec.kind for spec in specs if not KINDS[spec.kind].has_custom_l2}
    if without:
        yield (
            f"{shown['custom_l2']} needs blocks of RepVGG or QARepVGG, and {recipe.variant.label} has "
            f"{listed(sorted(without))} blocks, for which none is known; leave it out"
        )
    if recipe.quantization or recipe.freeze_stages:
        yield (
            f"{shown['custom_l2']} needs every block's branches to be trained, with quantization null and "
            "freeze_stages 0"
        )
    if recipe.weight_decay_filter != "paper":
        yield (
            f"{shown['custom_l2']} needs weight_decay_filter paper, not {shown['weight_decay_filter']}: it takes the "
            "kernels out of it"
        )


# Why gradients that RepOptimizer multiplies are not clipped.
NO_CLIPPING = (
    "RepOptimizer takes no clipped gradients: their norm would be that of the one kernel's, not of the branches' that "
    "it stands for, and the training no longer theirs; leave clip_grad out"
)

# With RepOptimizer: the value each of these keys must have, and why.
_OF_REPOPTIMIZER = (
    ("pretrained", "", "as it starts from the scales alone"),
    ("quantization", None, "which fine-tunes the fused network"),
)


def _repoptimizer(recipe, shown) -> Iterator[str]:
    if not recipe.scales:
        return
    if not recipe.variant.is_family or all(spec.kind != TARGET for spec in recipe.variant.block_specs()):
        yield (
            f"{shown['scales']} is for networks with RepOpt-VGG's blocks (repopt_vgg_b1 ...), and "
            f"{recipe.variant.label} has none; leave it out"
        )
    if not recipe.uses_repoptimizer:
        return
    for name, value, reason in _OF_REPOPTIMIZER:
        if getattr(recipe, name) != value:
            yield f"{shown[name]} does not go with {shown['scales']}, {reason}; leave one of them out"
    if recipe.clip_grad:
        yield f"{shown['clip_grad']}: {NO_CLIPPING}"


# Of quantization-aware training: the value each of these keys must have, and why.
_OF_QAT = (
    ("amp_level", "O0", "whose numbers are integers in float32"),
    ("recompute", False, "whose ranges would take every batch in twice"),
    ("precise_bn_steps", 0, "which folds BN's statistics and moves them no more"),
)


def _quantization(recipe, shown) -> Iterator[str]:
    if recipe.quantization and not recipe.pretrained:
        yield f"{shown['quantization']} needs pretrained: the network that is fused and fine-tuned for INT8"
    if recipe.distillation and not recipe.quantization:
        yield f"{shown['distillation']} needs quantization: the float network of pretrained is the teacher"
    if not recipe.quantization_per_channel and recipe.quantization != "qat":
        yield f"{shown['quantization_per_channel']} needs quantization qat: nothing else has scales"
    if recipe.quantization and recipe.sync_bn:
        yield f"{shown['sync_bn']} must be false with {shown['quantization']}, which starts from good BN statistics"
    for name, value, reason in _OF_QAT:
        if recipe.quantization == "qat" and getattr(recipe, name) != value:
            word = "false" if value is False else value
            yield f"{shown[name]} must be {word} with {shown['quantization']}, {reason}"
    if recipe.recompute and recipe.mode != 0:
        yield f"{shown['recompute']} needs mode 0: in PyNative mode BN's statistics would take every batch in twice"


def _checkpoints(recipe, shown) -> Iterator[str]:
    if recipe.ckpt_save_policy != "latest_k" and not recipe.val_while_train:
        yield f"{shown['ckpt_save_policy']} needs {shown['val_while_train']} to be true: it keeps the most accurate"


def find_variant(recipe) -> NetworkSpec:
    """The variant `model` and `model_args` describe; RecipeError, naming where they were given, when there is none."""
    for key in BLOCK_KEYS:
        if key in recipe.model_args:
            raise RecipeError(f"model_args{place(recipe.sources['model_args'])} holds {key}, which is a key of its own")
    own_sizes = variants.normalise_name(recipe.model) in variants.SHAPE_KEYS
    name = "model_args" if recipe.model_args or own_sizes else "model"
    start = f"{name}{place(recipe.sources[name])}"
    try:
        variant = recipe.own_blocks
    except UserError as error:
        raise RecipeError(f"{start}: {error}") from error
    except TypeError as error:
        raise RecipeError(
            f"{start}: num_blocks and widths must be lists, the others single values ({error})"
        ) from error
    try:
        return variant.with_block(recipe.block, recipe.block_where)
    except UserError as error:
        key = "block" if recipe.block else "block_where"
        raise RecipeError(f"{error}{place(recipe.sources[key])}") from error


# The data sets that lie nowhere but in data_dir, and what it holds then.
_FOLDERS = {
    "folder": "one folder of pictures a class, or train/ and val/ with these",
    "mnist": "train-images-idx3-ubyte and the other three files",
    "cifar10": "the archive's data_batch_1 to 5 and test_batch",
    "cifar100": "the archive's train and test",
}


def check_data_dir(recipe):
    """Refuse a folder that is missing or would not be read; apart, as only what reads data needs it."""
    given = recipe.sources["data_dir"] in (COMMAND_LINE, CODE)
    if recipe.dataset == "mnist5k" and recipe.data_dir and given:
        dataset = describe("dataset", recipe.dataset, recipe.sources["dataset"])
        raise RecipeError(
            f"data_dir (={quoted(recipe.data_dir)}) would not be read: {dataset} is built in; add --dataset folder for "
            "pictures of your own, or leave out data_dir"
        )
    if recipe.dataset in _FOLDERS and not recipe.data_dir:
        dataset = describe("dataset", recipe.dataset, recipe.sources["dataset"])
        raise RecipeError(
            f"data_dir is not given and {dataset} reads a folder with {_FOLDERS[recipe.dataset]}; "
            "add --data_dir FOLDER, or --dataset mnist5k for the built-in data"
        )


# Other programs' names for a key, as hints: by spelling alone, `epochs` is nearest to `decay_epochs`.
ELSEWHERE = {
    "epochs": "epoch_size",
    "num_epochs": "epoch_size",
    "learning_rate": "lr",
    "optimizer": "opt",
    "image_size": "image_resize",
    "workers": "num_parallel_workers",
    "num_workers": "num_parallel_workers",
    "nesterov": "use_nesterov",
    "output_dir": "ckpt_save_dir",
    "data_path": "data_dir",
}


def refuse_unknown(sources: Mapping[str, str], known: Collection[str]):
    """Raise RecipeError for the first key that is not known.

    Args:
        sources: the keys, and where each was given.
        known: the keys of the schema.
    """
    for name, source in sources.items():
        if name not in known:
            near = nearest(str(name), known, ELSEWHERE)
            hint = f"did you mean {near!r}?" if near else "--help lists the keys"
            raise RecipeError(f"unknown key {quoted(name)}{place(source)}; {hint}")
