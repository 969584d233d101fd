"""The schema: every key of a recipe on a line, with its type, its default, what it is for, and what it may be."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from mindrepvgg.errors import RecipeError
from mindrepvgg.models.block_kinds import KINDS, LINEAR_ADDITION
from mindrepvgg.models.network_spec import NetworkSpec
from mindrepvgg.models.networks import find_network
from mindrepvgg.models.preprocessing import INTERPOLATIONS, RESIZE_BACKENDS, SMALLEST_CROP, Preprocessing
from mindrepvgg.models.scales import NONE
from mindrepvgg.models.variant_check import MOST_CHANNELS, MOST_CLASSES
from mindrepvgg.recipe import choices, rules
from mindrepvgg.recipe.kinds import Kind, kind_of
from mindrepvgg.recipe.provenance import CODE, DEFAULT, describe
from mindrepvgg.recipe.strict_yaml import YamlError
from mindrepvgg.text import plain


class Key(NamedTuple):
    """One entry of the schema."""

    section: str
    default: Any
    kind: Kind
    comment: str


def key(default, comment: str, choices=(), section: str = "", **bounds: float) -> Any:
    """A field of `Recipe` with the values that `kinds.kind_of` describes; `section` begins a section of --help."""
    if isinstance(choices, Mapping):
        comment = f"{comment}. " + "; ".join(f"{word}: {meaning}" for word, meaning in choices.items() if meaning)
    entry = {"comment": comment, "choices": choices, "section": section, "bounds": bounds}
    return dataclasses.field(default_factory=lambda: default, metadata=entry)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A complete, checked recipe; constructing one with an unfit value raises RecipeError.

    Lists are kept as tuples, and `model` as `variants` spells it. `sources[key]` says where the value came from:
    'default', the yaml file's path, 'command line', or what else set it; it takes no part in comparisons.
    """

    model: str = key(
        "repvgg_a0",
        "network: repvgg_a0 ... repvggplus_l2pse, repvgg (own sizes), or mindcv/NAME of the installed MindCV",
        section="model",
    )
    model_args: Mapping[str, Any] = key(
        {}, "sizes of the networks 'repvgg', 'qarepvgg', 'mobileone', 'repopt_vgg': num_blocks, widths..."
    )
    block: str | None = key(
        None,
        f"other kind of block, not for MobileOne: {', '.join(KINDS)}; null: the network's own. "
        "With mindcv/NAME: the block that takes the place of convolutions",
    )
    block_where: tuple[str, ...] | None = key(
        None, "which blocks, or of mindcv/NAME convolutions: patterns of names as 'stage1.*'; null: all"
    )
    num_classes: int | None = key(None, "classes; null: as many as the data have", least=1, most=MOST_CLASSES)
    in_channels: int = key(3, "channels of an image", least=1, most=MOST_CHANNELS)
    pretrained: str = key("", "start: a file, address or name (mindrepvgg weights); other classes: a fresh head")
    freeze_stages: int = key(0, "first stages not trained, with their BN; 1: stage0; 5: all but head", least=0, most=5)
    freeze_bn: bool = key(False, "train no BN: its weights and statistics stay as they are")
    sync_bn: bool = key(False, "BN statistics over the images of all devices (Ascend only)")
    recompute: bool = key(False, "recompute each block's activations in the backward pass: less memory, more time")
    scales: str = key(
        "", "RepOptimizer: file of searched scales; initial: those a search starts with; none: plain optimizer"
    )
    quantization: str | None = key(None, "fine-tune pretrained, in deploy form, for INT8", choices.QUANTIZATIONS)
    quantization_per_channel: bool = key(True, "qat: a scale for each output channel's weights; false: one for a layer")

    dataset: str = key("folder", "what data_dir holds", choices.DATASETS, section="data")
    data_dir: str = key("", "folder of the data set; not needed for mnist5k, nor for fashion_mnist as Debian's package")
    val_share: float = key(0.0, "share of each class to validate on, without train/ and val/", least=0, below=1)
    batch_size: int = key(128, "images a step, per device", least=1)
    shuffle: bool = key(True, "draw a new order every epoch; false: the files' own order")
    drop_remainder: bool = key(True, "leave out the epoch's last, smaller batch (training only)")
    num_parallel_workers: int = key(8, "threads reading images; at most the machine's cores", least=1)
    image_resize: int | tuple[int, int] = key(224, "pixels the network sees: side, or H,W")
    crop_pct: float = key(0.875, "share of each side the validation crop keeps", least=SMALLEST_CROP, most=1)
    interpolation: str = key("bilinear", "how images are resized", INTERPOLATIONS)
    resize_backend: str = key("pillow", "what resizes in validation; pillow as published", RESIZE_BACKENDS)
    on_bad_image: str = key("replace", "an unreadable image, never counted in validation", choices.ON_BAD_IMAGE)
    bad_image_limit: float = key(0.001, "share of a split that may be unreadable, or 3; 0: none", least=0, most=1)
    mean: tuple[float, ...] = key((0.485, 0.456, 0.406), "mean of each channel, white being 1", least=0, most=1)
    std: tuple[float, ...] = key((0.229, 0.224, 0.225), "deviation of each channel, white being 1", above=0, most=1)

    scale: tuple[float, float] = key(
        (0.08, 1.0), "a random crop's share of area", section="augmentation", above=0, most=1
    )
    ratio: tuple[float, float] = key((0.75, 1.333), "width / height of a random crop before it is resized", above=0)
    crop_padding: int = key(0, "instead: pixels by which the resized picture is shifted at most", least=0)
    hflip: float = key(0.5, "probability of a horizontal flip", least=0, most=1)
    vflip: float = key(0.0, "probability of a vertical flip", least=0, most=1)
    color_jitter: float = key(0.0, "most change of brightness, contrast, saturation; without a policy", least=0, most=1)
    auto_augment: str | None = key(None, "policy, as autoaug, autoaugr, 3a, randaug-m9-mstd0.5-inc1, trivialaugwide")
    re_prob: float = key(0.0, "probability of random erasing", least=0, most=1)
    re_scale: tuple[float, float] = key((0.02, 0.33), "share of the image's area that is erased", above=0, most=1)
    re_ratio: tuple[float, float] = key((0.3, 3.3), "height / width of what is erased", above=0)
    re_value: float = key(0.0, "what is written there, in normalised units")
    mixup: float = key(0.0, "alpha of mixup's Beta(alpha, alpha); 0: none", least=0)
    cutmix: float = key(0.0, "alpha of cutmix's Beta(alpha, alpha); 0: none", least=0)
    cutmix_prob: float = key(1.0, "share of the batches that are mixed; both given: half each", least=0, most=1)
    aug_repeats: int = key(0, "times an image is used in a step, augmented anew; 0 or 1: once", least=0, most=1000)

    epoch_size: int = key(120, "epochs of the run", section="optimisation", least=1, most=1_000_000)
    opt: str = key("momentum", "optimizer", choices.OPTIMIZERS)
    lr: float = key(0.1, "highest learning rate", above=0)
    lr_per_batch: int | None = key(None, "global batch lr is for: lr, min_lr are scaled to the run's own", least=1)
    min_lr: float = key(0.0, "learning rate the decay ends with", least=0)
    scheduler: str = key("cosine_decay", "learning rate's curve after warm-up", choices.SCHEDULERS)
    warmup_epochs: int = key(0, "epochs of linear warm-up", least=0)
    warmup_factor: float = key(0.0, "share of lr the warm-up starts from", least=0, most=1)
    decay_epochs: int | None = key(None, "epochs of decay; null: all that are left; step_decay: between steps", least=1)
    decay_rate: float = key(0.1, "factor of a step; exponential_decay: of an epoch; polynomial_decay: power", above=0)
    multi_step_decay_milestones: tuple[float, ...] = key((30, 60, 90), "epochs after warm-up where it steps", least=0)
    num_cycles: int = key(1, "cycles of cosine_decay, decay_epochs each", least=1)
    cycle_decay: float = key(1.0, "factor of lr from one cosine cycle to the next", above=0, most=1)
    lr_epoch_stair: bool = key(False, "one learning rate an epoch, that of its first step")
    momentum: float = key(0.9, "momentum of SGD", least=0, below=1)
    use_nesterov: bool = key(False, "use Nesterov's momentum")
    betas: tuple[float, float] = key((0.9, 0.999), "decay rates of adamw's two moments", above=0, below=1)
    eps: float = key(1e-8, "term in adamw's denominator", above=0)
    weight_decay: float = key(1e-4, "weight decay", least=0)
    weight_decay_filter: str = key("paper", "parameters that decay", choices.WEIGHT_DECAY_FILTERS)
    layer_decay: float = key(1.0, "factor of lr from a block to the one before it; head: 1", above=0, most=1)
    custom_l2: bool = key(False, "decay each block's equivalent kernel, in the loss, not its branches' kernels")
    loss: str = key("CE", "loss of each head", choices.LOSSES)
    label_smoothing: float = key(0.0, "share of the target spread evenly over all classes", least=0, below=1)
    distillation: float = key(0.0, "with quantization: share of the loss that pretrained's logits are", least=0, most=1)
    aux_weight: float = key(0.1, "weight of each auxiliary head in the loss (RepVGGplus)", least=0)
    clip_grad: bool = key(False, "clip the gradients by their global norm")
    clip_value: float = key(15.0, "the norm they are clipped to", above=0)
    gradient_accumulation_steps: int = key(1, "steps whose gradients are averaged for one update", least=1)
    ema: bool = key(False, "keep a moving average of the weights, validated and saved too")
    ema_decay: float = key(0.9999, "its decay, approached as decay * (1 - exp(-updates / 2000))", least=0, below=1)
    precise_bn_steps: int = key(0, "training batches to take BN's statistics over anew at the end; 0: none", least=0)

    amp_level: str = key("O0", "precision", choices.AMP_LEVELS, section="precision")
    amp_dtype: str = key("float16", "half precision's type (bfloat16: not on 910A)", choices.AMP_DTYPES)
    loss_scale_type: str = key("fixed", "loss scale", choices.LOSS_SCALES)
    loss_scale: float = key(1.0, "factor of the loss in the backward pass; a dynamic one begins with it", least=1)
    loss_scale_window: int = key(2000, "steps after which a dynamic scale is doubled", least=1)
    drop_overflow_update: bool = key(True, "skip, on all devices, an update whose gradients are not finite on one")

    distribute: str | bool = key("auto", "data-parallel; auto: under a launcher", ("auto", True, False), section="run")
    all_reduce: str = key("bundled", "how gradients are averaged over the devices", choices.ALL_REDUCES)
    seed: int = key(42, "seed of weights, shuffling and augmentation", least=0, most=2**32 - 1)
    mode: int = key(0, "0: graph mode; 1: PyNative mode", (0, 1))
    device_target: str = key("auto", "device; auto: Ascend if there is one", ("auto", "CPU", "Ascend"))
    jit_level: str = key("auto", "compile level on Ascend; auto: by hardware and version", ("auto", "O0", "O1", "O2"))
    grouped: str = key("native", "convolutions in groups", choices.GROUPED)
    dataset_sink_mode: bool = key(False, "let the device fetch its own batches (Ascend; elsewhere without effect)")
    compile_cache: bool = key(False, "keep compiled graphs in ckpt_save_dir, so that a restart need not compile again")
    ckpt_save_dir: str = key("./outputs", "folder for checkpoints, the log and the resolved recipe")
    keep_checkpoint_max: int = key(3, "epoch checkpoints kept besides the best and the last", least=0)
    ckpt_save_policy: str = key("latest_k", "which they are", choices.SAVE_POLICIES)
    ckpt_save_interval: int = key(1, "epochs between two epoch checkpoints", least=1)
    tensorboard: bool = key(
        False,
        "write curves as event files (the extra tensorboard, which is tensorboardX). To look at them: pip install "
        "tensorboard; tensorboard --logdir CKPT_SAVE_DIR",
    )
    log_interval: int = key(10, "steps between two progress updates", least=1)
    val_while_train: bool = key(True, "validate during training")
    val_interval: int = key(1, "epochs between two validations", least=1)

    sources: dict[str, str] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self):
        sources, shown = {}, {}
        for name, entry in KEYS.items():
            given = getattr(self, name)
            try:
                value = entry.kind.read(given)
            except (ValueError, TypeError, OverflowError, RecursionError) as error:
                shown_value = describe(name, given, self.sources.get(name, CODE))
                reason = f"; {error}" if isinstance(error, YamlError) else ""
                raise RecipeError(f"{shown_value} must be {entry.kind.expected}{reason}") from error
            sources[name] = self.sources.get(name, DEFAULT if value == entry.default else CODE)
            shown[name] = describe(name, value, sources[name])
            object.__setattr__(self, name, value)
        object.__setattr__(self, "sources", sources)
        object.__setattr__(self, "dataset", choices.DATASET_ALIASES.get(self.dataset, self.dataset))
        object.__setattr__(self, "model", rules.find_variant(self).name)
        rules.check(self, shown)

    @property
    def variant(self) -> NetworkSpec:
        """The network the recipe names."""
        return self.own_blocks.with_block(self.block, self.block_where)

    @property
    def own_blocks(self) -> NetworkSpec:
        """The same as its name has it, without `block`."""
        return find_network(self.model, **self.model_args)

    @property
    def uses_repoptimizer(self) -> bool:
        """Whether the network is trained by RepOptimizer, with `scales`."""
        return self.scales not in ("", NONE)

    @property
    def searches_scales(self) -> bool:
        """Whether the network has linear additions, whose scales are what the run is for."""
        layout: Any = self.variant
        return layout.is_family and any(spec.kind == LINEAR_ADDITION for spec in layout.block_specs())

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the images the network sees."""
        return self.image_resize if isinstance(self.image_resize, tuple) else (self.image_resize,) * 2

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
        rules.refuse_unknown(sources, KEYS)
        return dataclasses.replace(self, **changes, sources={**self.sources, **sources})

    def global_batch(self, devices: int) -> int:
        """Images of one update: devices * batch_size * gradient_accumulation_steps."""
        return devices * self.batch_size * self.gradient_accumulation_steps


def _read_keys() -> dict[str, Key]:
    keys, section = {}, ""
    field: Any  # its type and its default are of many kinds
    for field in dataclasses.fields(Recipe):
        if entry := field.metadata:
            section, default = entry["section"] or section, field.default_factory()
            kind = kind_of(field.type, *entry["choices"], allow_empty=default == "", **entry["bounds"])
            keys[field.name] = Key(section, default, kind, entry["comment"])
    return keys


KEYS = _read_keys()
