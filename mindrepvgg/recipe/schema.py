"""The schema: every key with its default, its comment and its check, and the checks of keys together."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import yaml

from mindrepvgg.errors import RecipeError, UserError
from mindrepvgg.models import variants
from mindrepvgg.models.preprocessing import INTERPOLATIONS, RESIZE_BACKENDS, Preprocessing
from mindrepvgg.recipe import kinds
from mindrepvgg.recipe.kinds import Kind, plain
from mindrepvgg.recipe.policies import parse_policy
from mindrepvgg.text import nearest

DEFAULT, COMMAND_LINE, CODE = "default", "command line", "code"
MINDCV = "MindCV's default"

# `schedule.SCHEDULERS` again (a test compares them): importing it would add NumPy's import to every --help and error.
_SCHEDULERS = (
    *("cosine_decay", "step_decay", "multi_step_decay", "exponential_decay", "polynomial_decay", "one_cycle"),
    "constant",
)


class Key(NamedTuple):
    """One entry of the schema."""

    section: str
    default: Any
    kind: Kind
    comment: str


def _key(section: str, default, kind: Kind, comment: str):
    """A dataclass field carrying its schema entry."""
    return dataclasses.field(default_factory=lambda: default, metadata={"key": Key(section, default, kind, comment)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A complete, checked recipe; constructing one with an unfit value raises RecipeError.

    Lists are kept as tuples and `model` in the house's spelling. `sources[key]` says where the value came from:
    'default', the yaml file's path, 'command line', or what else set it; it takes no part in comparisons.
    """

    model: str = _key(
        "model", "repvgg_a0", kinds.text(), "network: repvgg_a0 ... repvggplus_l2pse, or repvgg (own sizes)"
    )
    model_args: Mapping[str, Any] = _key(
        "model", {}, kinds.mapping(), "sizes of the network 'repvgg': num_blocks, widths, group_size, se..."
    )
    num_classes: int = _key("model", 1000, kinds.whole(least=1), "classes the network tells apart")
    in_channels: int = _key("model", 3, kinds.whole(least=1), "channels of an image")
    pretrained: str = _key(
        "model",
        "",
        kinds.text(allow_empty=True),
        "checkpoint of any project to start from; another class count: a fresh head",
    )
    freeze_stages: int = _key(
        "model",
        0,
        kinds.whole(least=0, most=5),
        "first stages that are not trained, their BN statistics included: 1 is stage0 alone, 5 all but the head",
    )
    freeze_bn: bool = _key("model", False, kinds.flag(), "train no BN: its weights and statistics stay as they are")
    sync_bn: bool = _key("model", False, kinds.flag(), "BN statistics over the images of all devices (Ascend only)")
    recompute: bool = _key(
        "model", False, kinds.flag(), "recompute each block's activations in the backward pass: less memory, more time"
    )
    quantization: str = _key(
        "model",
        "none",
        kinds.choice("none", "bn", "qat"),
        "fine-tune pretrained in deploy form for INT8: bn: with BN after each convolution; qat: with INT8's rounding",
    )

    dataset: str = _key(
        "data",
        "imagenet",
        kinds.choice("imagenet", "mnist5k", "mnist", "fashion_mnist", "cifar10", "cifar100"),
        "imagenet: a folder with train/ and val/, one folder a class in each; mnist5k: built in; the others: the files "
        "as published",
    )
    data_dir: str = _key(
        "data",
        "",
        kinds.text(allow_empty=True),
        "folder of the data set; not needed for mnist5k, nor for fashion_mnist as Debian's package",
    )
    val_share: float = _key(
        "data",
        0.0,
        kinds.number(least=0, below=1),
        "share of each class kept for validation where a folder of imagenet's kind has neither train/ nor val/",
    )
    batch_size: int = _key("data", 128, kinds.whole(least=1), "images a step, per device")
    shuffle: bool = _key("data", True, kinds.flag(), "draw a new order every epoch; false: the files' own order")
    drop_remainder: bool = _key("data", True, kinds.flag(), "leave out the epoch's last, smaller batch (training only)")
    num_parallel_workers: int = _key(
        "data", 8, kinds.whole(least=1), "threads reading images; at most the machine's cores"
    )
    image_resize: int | tuple[int, int] = _key("data", 224, kinds.image_size(), "pixels the network sees: side, or H,W")
    crop_pct: float = _key("data", 0.875, kinds.number(above=0, most=1), "share of each side the validation crop keeps")
    interpolation: str = _key("data", "bilinear", kinds.choice(*INTERPOLATIONS), "how images are resized")
    resize_backend: str = _key(
        "data",
        "pillow",
        kinds.choice(*RESIZE_BACKENDS),
        "what resizes images in validation: pillow as published accuracies were measured; the others are faster",
    )
    on_bad_image: str = _key(
        "data",
        "replace",
        kinds.choice("error", "skip", "replace"),
        "an unreadable image: end the run, or train on another of its batch or of its class; not counted in validation",
    )
    bad_image_limit: float = _key(
        "data", 0.001, kinds.number(least=0, most=1), "share of a split's images that may be unreadable"
    )
    mean: tuple[float, ...] = _key(
        "data", (0.485, 0.456, 0.406), kinds.numbers(least=0, most=1), "mean of each channel, white being 1"
    )
    std: tuple[float, ...] = _key(
        "data",
        (0.229, 0.224, 0.225),
        kinds.numbers(above=0, most=1),
        "standard deviation of each channel, white being 1",
    )

    scale: tuple[float, float] = _key(
        "augmentation", (0.08, 1.0), kinds.interval(above=0, most=1), "share of the image's area a random crop covers"
    )
    ratio: tuple[float, float] = _key(
        "augmentation", (0.75, 1.333), kinds.interval(above=0), "width / height of a random crop before it is resized"
    )
    hflip: float = _key("augmentation", 0.5, kinds.number(least=0, most=1), "probability of a horizontal flip")
    vflip: float = _key("augmentation", 0.0, kinds.number(least=0, most=1), "probability of a vertical flip")
    color_jitter: float = _key(
        "augmentation",
        0.0,
        kinds.number(least=0, most=1),
        "largest change of brightness, contrast and saturation, as a share; not used with auto_augment",
    )
    auto_augment: str | None = _key(
        "augmentation",
        None,
        kinds.optional(kinds.text()),
        "policy, such as autoaug, autoaugr, 3a, randaug-m9-mstd0.5-inc1, trivialaugwide; null: none",
    )
    re_prob: float = _key("augmentation", 0.0, kinds.number(least=0, most=1), "probability of random erasing")
    re_scale: tuple[float, float] = _key(
        "augmentation", (0.02, 0.33), kinds.interval(above=0, most=1), "share of the image's area that is erased"
    )
    re_ratio: tuple[float, float] = _key(
        "augmentation", (0.3, 3.3), kinds.interval(above=0), "height / width of what is erased"
    )
    re_value: float = _key("augmentation", 0.0, kinds.number(), "what is written there, in normalised units")
    mixup: float = _key("augmentation", 0.0, kinds.number(least=0), "alpha of mixup's Beta(alpha, alpha); 0: none")
    cutmix: float = _key("augmentation", 0.0, kinds.number(least=0), "alpha of cutmix's Beta(alpha, alpha); 0: none")
    cutmix_prob: float = _key(
        "augmentation", 1.0, kinds.number(least=0, most=1), "share of the batches that are mixed; both given: half each"
    )
    aug_repeats: int = _key(
        "augmentation", 0, kinds.whole(least=0), "times an image is used in a step, augmented anew; 0 or 1: once"
    )

    epoch_size: int = _key("optimisation", 120, kinds.whole(least=1), "epochs of the run")
    opt: str = _key(
        "optimisation",
        "momentum",
        kinds.choice("momentum", "sgd", "adamw"),
        "optimizer; momentum and sgd are the same here: SGD with momentum",
    )
    lr: float = _key("optimisation", 0.1, kinds.number(above=0), "highest learning rate")
    lr_per_batch: int | None = _key(
        "optimisation",
        None,
        kinds.optional(kinds.whole(least=1)),
        "global batch lr is meant for: lr, min_lr are scaled linearly to the run's own; null: lr as it is",
    )
    min_lr: float = _key("optimisation", 0.0, kinds.number(least=0), "learning rate the decay ends with")
    scheduler: str = _key(
        "optimisation", "cosine_decay", kinds.choice(*_SCHEDULERS), "learning rate's curve after warm-up"
    )
    warmup_epochs: int = _key("optimisation", 0, kinds.whole(least=0), "epochs of linear warm-up")
    warmup_factor: float = _key(
        "optimisation", 0.0, kinds.number(least=0, most=1), "share of lr the warm-up starts from"
    )
    decay_epochs: int | None = _key(
        "optimisation",
        None,
        kinds.optional(kinds.whole(least=1)),
        "epochs from lr to min_lr, null: all after the warm-up; of step_decay: epochs between two steps",
    )
    decay_rate: float = _key(
        "optimisation",
        0.1,
        kinds.number(above=0),
        "step_decay, multi_step_decay: factor of a step; exponential_decay: of an epoch; polynomial_decay: the power",
    )
    multi_step_decay_milestones: tuple[float, ...] = _key(
        "optimisation",
        (30, 60, 90),
        kinds.numbers(least=0),
        "epochs, counted from the end of the warm-up, at which multi_step_decay steps",
    )
    num_cycles: int = _key("optimisation", 1, kinds.whole(least=1), "cycles of cosine_decay, decay_epochs each")
    cycle_decay: float = _key(
        "optimisation", 1.0, kinds.number(above=0, most=1), "factor of lr from one cosine cycle to the next"
    )
    lr_epoch_stair: bool = _key(
        "optimisation", False, kinds.flag(), "one learning rate an epoch, that of its first step"
    )
    momentum: float = _key("optimisation", 0.9, kinds.number(least=0, below=1), "momentum of SGD")
    use_nesterov: bool = _key("optimisation", False, kinds.flag(), "use Nesterov's momentum")
    betas: tuple[float, float] = _key(
        "optimisation", (0.9, 0.999), kinds.interval(above=0, below=1), "decay rates of adamw's two moments"
    )
    eps: float = _key("optimisation", 1e-8, kinds.number(above=0), "term in adamw's denominator")
    weight_decay: float = _key("optimisation", 1e-4, kinds.number(least=0), "weight decay")
    weight_decay_filter: str = _key(
        "optimisation",
        "paper",
        kinds.choice("paper", "norm_and_bias", "norm", "all"),
        "parameters that decay: paper: not biases nor the BN of the 3x3 and 1x1 branches, but the identity BN's gamma; "
        "norm_and_bias: neither biases nor any BN; norm: no BN; all: all",
    )
    custom_l2: bool = _key(
        "optimisation",
        False,
        kinds.flag(),
        "decay, instead of the kernels of a block's branches, the one kernel they make up, as part of the loss",
    )
    loss: str = _key("optimisation", "CE", kinds.choice("CE", "BCE"), "cross-entropy, or binary cross-entropy a class")
    label_smoothing: float = _key(
        "optimisation", 0.0, kinds.number(least=0, below=1), "share of the target spread evenly over all classes"
    )
    aux_weight: float = _key(
        "optimisation", 0.1, kinds.number(least=0), "weight of each auxiliary head in the loss (RepVGGplus)"
    )
    clip_grad: bool = _key("optimisation", False, kinds.flag(), "clip the gradients by their global norm")
    clip_value: float = _key("optimisation", 15.0, kinds.number(above=0), "the norm they are clipped to")
    gradient_accumulation_steps: int = _key(
        "optimisation", 1, kinds.whole(least=1), "steps whose gradients are averaged for one update"
    )
    ema: bool = _key(
        "optimisation", False, kinds.flag(), "keep a moving average of the weights, validated and saved too"
    )
    ema_decay: float = _key(
        "optimisation",
        0.9999,
        kinds.number(least=0, below=1),
        "the average's decay an update, approached as decay * (1 - exp(-updates / 2000))",
    )
    precise_bn_steps: int = _key(
        "optimisation",
        0,
        kinds.whole(least=0),
        "after the last epoch, take the BN statistics anew over this many training batches; 0: leave them",
    )

    amp_level: str = _key(
        "precision",
        "O0",
        kinds.choice("O0", "O2", "O3"),
        "O0: float32; O2: half precision, BN in float32; O3: BN's inputs and outputs too, its statistics in float32",
    )
    amp_dtype: str = _key(
        "precision", "float16", kinds.choice("float16", "bfloat16"), "half precision's type (bfloat16: not on 910A)"
    )
    loss_scale_type: str = _key(
        "precision",
        "fixed",
        kinds.choice("fixed", "dynamic"),
        "dynamic: halved after an overflow, doubled after loss_scale_window steps without one",
    )
    loss_scale: float = _key(
        "precision", 1.0, kinds.number(least=1), "factor of the loss in the backward pass; the first"
    )
    loss_scale_window: int = _key(
        "precision", 2000, kinds.whole(least=1), "steps after which a dynamic scale is doubled"
    )
    drop_overflow_update: bool = _key(
        "precision", True, kinds.flag(), "skip, on all devices, an update whose gradients are not finite on one"
    )

    distribute: str | bool = _key(
        "run",
        "auto",
        kinds.choice("auto", True, False),
        "data-parallel training; auto: if msrun (or mpirun) started this process",
    )
    seed: int = _key("run", 42, kinds.whole(least=0, most=2**32 - 1), "seed of weights, shuffling and augmentation")
    mode: int = _key("run", 0, kinds.choice(0, 1), "0: graph mode; 1: PyNative mode")
    device_target: str = _key(
        "run", "auto", kinds.choice("auto", "CPU", "Ascend"), "device; auto: Ascend if there is one"
    )
    jit_level: str = _key(
        "run",
        "auto",
        kinds.choice("auto", "O0", "O1", "O2"),
        "graph compilation level; auto: O2 on Ascend where supported",
    )
    dataset_sink_mode: bool = _key(
        "run", False, kinds.flag(), "let the device fetch its own batches (Ascend; elsewhere without effect)"
    )
    compile_cache: bool = _key(
        "run", False, kinds.flag(), "keep compiled graphs in ckpt_save_dir, so that a restart need not compile again"
    )
    ckpt_save_dir: str = _key(
        "run", "./outputs", kinds.text(), "folder for checkpoints, the log and the resolved recipe"
    )
    keep_checkpoint_max: int = _key(
        "run", 3, kinds.whole(least=0), "epoch checkpoints kept besides the best and the last"
    )
    ckpt_save_policy: str = _key(
        "run", "latest_k", kinds.choice("latest_k", "top_k"), "which they are: the latest, or the most accurate"
    )
    ckpt_save_interval: int = _key("run", 1, kinds.whole(least=1), "epochs between two epoch checkpoints")
    tensorboard: bool = _key("run", False, kinds.flag(), "write TensorBoard event files too (pip install tensorboard)")
    log_interval: int = _key("run", 10, kinds.whole(least=1), "steps between two progress updates")
    val_while_train: bool = _key("run", True, kinds.flag(), "validate during training")
    val_interval: int = _key("run", 1, kinds.whole(least=1), "epochs between two validations")

    sources: dict[str, str] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self):
        sources = {}
        for name, key in KEYS.items():
            value = getattr(self, name)
            sources[name] = self.sources.get(name, DEFAULT if value == key.default else CODE)
            try:
                value = key.kind.read(value)
            except (ValueError, TypeError, OverflowError, yaml.YAMLError) as error:
                raise RecipeError(f"{describe(name, value, sources[name])} must be {key.kind.expected}") from error
            object.__setattr__(self, name, value)
        object.__setattr__(self, "sources", sources)
        object.__setattr__(self, "model", _find_variant(self).name)
        _check_together(self)

    @property
    def variant(self) -> variants.Variant:
        """The layout of the network the recipe names."""
        return variants.find(self.model, **self.model_args)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the images the network sees."""
        size = self.image_resize
        return size if isinstance(size, tuple) else (size, size)

    @property
    def preprocessing(self) -> Preprocessing:
        """How images become the network's input."""
        return Preprocessing.of(self)

    @property
    def decay_rule(self) -> str:
        """Which parameters decay, as `optim.parameter_groups` wants it."""
        return "custom_l2" if self.custom_l2 else self.weight_decay_filter

    def to_dict(self) -> dict:
        """Every key's value in types json and yaml can write; `recipe_from_dict` reads it back."""
        return {name: plain(getattr(self, name)) for name in KEYS}

    def replace(self, source: str = CODE, /, **changes) -> Recipe:
        """A copy with other values, checked again as a whole; `source` is noted for the keys changed."""
        sources = dict.fromkeys(changes, source)
        refuse_unknown(sources)
        return dataclasses.replace(self, **changes, sources={**self.sources, **sources})

    def global_batch(self, devices: int) -> int:
        """Images of one update: devices * batch_size * gradient_accumulation_steps."""
        return devices * self.batch_size * self.gradient_accumulation_steps


KEYS = {field.name: field.metadata["key"] for field in dataclasses.fields(Recipe) if "key" in field.metadata}


def _at(source: str) -> str:
    """The place in words, to follow a value."""
    if source.startswith(MINDCV):
        return f", {source}"
    return {DEFAULT: ", the default", COMMAND_LINE: " on the command line", CODE: ""}.get(source, f" in {source}")


def describe(name: str, value, source: str) -> str:
    """The key with its value and origin: `lr (=-1 in configs/x.yaml)`."""
    return f"{name} (={plain(value)!r}{_at(source)})"


def _find_variant(recipe: Recipe) -> variants.Variant:
    """The variant `model` and `model_args` describe; RecipeError, naming where they were given, when there is none."""
    own_sizes = variants.normalise_name(recipe.model) == "repvgg"
    name = "model_args" if recipe.model_args or own_sizes else "model"
    place = f"{name}{_at(recipe.sources[name])}"
    try:
        return recipe.variant
    except UserError as error:
        raise RecipeError(f"{place}: {error}") from error
    except TypeError as error:
        raise RecipeError(
            f"{place}: num_blocks and widths must be lists, the others single values ({error})"
        ) from error


def _check_together(recipe: Recipe):
    """Refuse values that are possible one by one but do not fit each other."""
    shown = {name: describe(name, getattr(recipe, name), recipe.sources[name]) for name in KEYS}
    warmup, total, cycles = recipe.warmup_epochs, recipe.epoch_size, recipe.num_cycles
    # Of step_decay, decay_epochs is the length of a step, which may be longer than what is left.
    decay = 0 if recipe.scheduler == "step_decay" else recipe.decay_epochs or 0
    for_int8 = recipe.quantization != "none"
    channels = f"must have one number for each of {shown['in_channels']}"
    rules = [
        (len(recipe.mean) == recipe.in_channels, f"{shown['mean']} {channels}"),
        (len(recipe.std) == recipe.in_channels, f"{shown['std']} {channels}"),
        (recipe.min_lr <= recipe.lr, f"{shown['min_lr']} must be at most {shown['lr']}"),
        (warmup <= total, f"{shown['warmup_epochs']} must be at most {shown['epoch_size']}"),
        (
            warmup + decay <= total,
            f"{shown['warmup_epochs']} and {shown['decay_epochs']} together must be at most {shown['epoch_size']}; "
            "decay_epochs null takes what is left",
        ),
        (
            recipe.scheduler != "cosine_decay" or cycles == 1 or warmup + cycles * (decay or total - warmup) <= total,
            f"{shown['num_cycles']} of {shown['decay_epochs']} must fit into {shown['epoch_size']} after "
            f"{shown['warmup_epochs']}",
        ),
        (
            recipe.scheduler != "one_cycle" or not warmup,
            f"{shown['warmup_epochs']} must be 0 with {shown['scheduler']}, which begins with a rise of its own",
        ),
        (
            recipe.scheduler != "step_decay" or recipe.decay_epochs is not None,
            f"{shown['scheduler']} needs decay_epochs, the epochs between two steps",
        ),
        (
            recipe.decay_rate <= 1 or recipe.scheduler not in ("step_decay", "multi_step_decay", "exponential_decay"),
            f"{shown['decay_rate']} must be at most 1 with {shown['scheduler']}: the learning rate would grow",
        ),
        (
            not recipe.use_nesterov or (recipe.opt in ("momentum", "sgd") and recipe.momentum),
            f"{shown['use_nesterov']} needs SGD with momentum, not {shown['opt']} with {shown['momentum']}",
        ),
        (
            recipe.drop_overflow_update or recipe.loss_scale_type == "fixed",
            f"{shown['drop_overflow_update']} needs loss_scale_type fixed: a dynamic scale finds its size by skipping",
        ),
        (
            recipe.amp_dtype == "float16" or recipe.amp_level == "O2",
            f"{shown['amp_dtype']} needs amp_level O2, not {shown['amp_level']}",
        ),
        (
            not recipe.freeze_stages or recipe.pretrained,
            f"{shown['freeze_stages']} needs pretrained: stages that are not trained keep the weights they start with",
        ),
        (
            not (recipe.freeze_bn and recipe.precise_bn_steps),
            f"{shown['precise_bn_steps']} must be 0 with {shown['freeze_bn']}, which leaves BN as it is",
        ),
        (
            not for_int8 or recipe.pretrained,
            f"{shown['quantization']} needs pretrained: the network that is fused and fine-tuned for INT8",
        ),
        (
            not recipe.custom_l2 or not (for_int8 or recipe.freeze_stages),
            f"{shown['custom_l2']} needs every block's branches to be trained, with quantization none and "
            "freeze_stages 0",
        ),
        (
            not recipe.custom_l2 or recipe.weight_decay_filter == "paper",
            f"{shown['custom_l2']} needs weight_decay_filter paper, not {shown['weight_decay_filter']}: it takes the "
            "kernels out of it",
        ),
        (
            not (for_int8 and recipe.sync_bn),
            f"{shown['sync_bn']} must be false with {shown['quantization']}, which starts from good BN statistics",
        ),
        *(
            (
                recipe.quantization != "qat" or getattr(recipe, name) == KEYS[name].default,
                f"{shown[name]} must be {KEYS[name].default} with {shown['quantization']}, {reason}",
            )
            for name, reason in (
                ("amp_level", "whose numbers are integers in float32"),
                ("recompute", "whose ranges would take every batch in twice"),
                ("precise_bn_steps", "which folds BN's statistics and moves them no more"),
            )
        ),
        (
            not recipe.recompute or recipe.mode == 0,
            f"{shown['recompute']} needs mode 0: in PyNative mode BN's statistics would take every batch in twice",
        ),
        (
            recipe.ckpt_save_policy == "latest_k" or recipe.val_while_train,
            f"{shown['ckpt_save_policy']} needs {shown['val_while_train']} to be true: it keeps the most accurate",
        ),
    ]
    if recipe.auto_augment is not None:
        try:
            parse_policy(recipe.auto_augment)
        except ValueError as error:
            raise RecipeError(f"{shown['auto_augment']}: {error}") from None
    for holds, message in rules:
        if not holds:
            raise RecipeError(message)


# The data sets that lie nowhere but in data_dir, and what it holds then.
_FOLDERS = {
    "imagenet": "train/ and val/",
    "mnist": "train-images-idx3-ubyte and the other three files",
    "cifar10": "the archive's data_batch_1 to 5 and test_batch",
    "cifar100": "the archive's train and test",
}


def check_data_dir(recipe: Recipe):
    """Refuse a recipe whose data set is a folder that was not named; apart, as only what reads data needs it."""
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


def refuse_unknown(sources: Mapping[str, str]):
    """Raise RecipeError for the first key the schema does not have; sources: where each was given."""
    for name, source in sources.items():
        if name not in KEYS:
            near = nearest(str(name), KEYS, ELSEWHERE)
            hint = f"did you mean {near!r}?" if near else "--help lists the keys"
            raise RecipeError(f"unknown key {name!r}{_at(source)}; {hint}")
