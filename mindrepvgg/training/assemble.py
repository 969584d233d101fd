"""The parts of a run as a recipe describes them."""

from __future__ import annotations

from mindspore import nn

from mindrepvgg.data.loaders import CALIBRATION_IMAGES, CalibrationBatches, check_classes, loader_of, open_split
from mindrepvgg.data.normalize import Normalize
from mindrepvgg.data.source import spread
from mindrepvgg.errors import CheckpointError, DataError, RecipeError
from mindrepvgg.models import qat, variants
from mindrepvgg.reparam.layers import set_grouped
from mindrepvgg.reparam.precision import set_precision
from mindrepvgg.text import counted
from mindrepvgg.training import custom_l2
from mindrepvgg.training.distillation import Distillation
from mindrepvgg.training.freeze import freeze
from mindrepvgg.training.loss import build_loss
from mindrepvgg.training.optim import build_optimizer
from mindrepvgg.training.repoptimizer import recipe_scales, start_from_scales
from mindrepvgg.training.schedule import SCHEDULE, learning_rates, scaled_lr
from mindrepvgg.training.step import LossScale, NetworkWithLoss, TrainStep
from mindrepvgg.weights.load import create_model, load_weights

_MOST_STEPS = 50_000_000  # of a run; each has a learning rate in memory


def count_steps(recipe, loader) -> int:
    """The steps of an epoch: groups of `gradient_accumulation_steps` batches; those that fill no group are left out."""
    steps = loader.steps_per_epoch // recipe.gradient_accumulation_steps
    if steps * recipe.epoch_size > _MOST_STEPS:
        raise RecipeError(
            f"epoch_size (={recipe.epoch_size}) of {steps} steps each makes more than {_MOST_STEPS} steps; lower it"
        )
    if not steps:
        raise DataError(
            f"gradient_accumulation_steps (={recipe.gradient_accumulation_steps}) is more than an epoch's "
            f"{counted(loader.steps_per_epoch, 'batch')}; lower it or batch_size (={recipe.batch_size})"
        )
    return steps


def build_learning_rates(recipe, steps_per_epoch, images_per_step, schedule=SCHEDULE):
    """The learning rate of every step, scaled to the global batch where the recipe asks for it."""
    return learning_rates(
        scheduler=recipe.scheduler,
        lr=scaled_lr(recipe.lr, recipe.lr_per_batch, images_per_step),
        min_lr=scaled_lr(recipe.min_lr, recipe.lr_per_batch, images_per_step),
        steps_per_epoch=steps_per_epoch,
        epoch_size=recipe.epoch_size,
        warmup_epochs=recipe.warmup_epochs,
        warmup_factor=recipe.warmup_factor,
        decay_epochs=recipe.decay_epochs,
        decay_rate=recipe.decay_rate,
        multi_step_decay_milestones=recipe.multi_step_decay_milestones,
        num_cycles=recipe.num_cycles,
        cycle_decay=recipe.cycle_decay,
        lr_epoch_stair=recipe.lr_epoch_stair,
        schedule=schedule,
    )


def build_network(recipe, ranks, weights=None, scales=None):
    """The network in train form and in the recipe's precision, the same on every rank.

    With the recipe's `quantization` in the form that it names instead; without weights BN and ranges say nothing.
    scales: what RepOptimizer starts from; None: what the recipe names.
    """
    net = _new_network(recipe, ranks, weights) if recipe.quantization is None else _fused_network(recipe, weights)
    scales = recipe_scales(recipe) if scales is None else scales
    if scales:
        start_from_scales(net, scales)
    freeze(net, recipe.freeze_stages, recipe.freeze_bn)
    if recipe.recompute:
        net.recompute_blocks()
    ranks.broadcast(net.get_parameters())
    set_grouped(net, recipe.grouped)
    return set_precision(net, recipe.amp_level, recipe.amp_dtype)


def _new_network(recipe, ranks, weights):
    norm = nn.BatchNorm2d
    if recipe.sync_bn and ranks.size > 1:
        norm = nn.SyncBatchNorm
    try:
        return create_model(*_network_of(recipe), weights=weights, norm=norm, **recipe.variant.model_args)
    except ValueError as error:
        if norm is nn.BatchNorm2d:
            raise
        raise RecipeError(f"sync_bn (=True) is not possible on this device: {error}; leave it out") from error


def _network_of(recipe) -> tuple[str, int, int]:
    return recipe.model, recipe.num_classes, recipe.in_channels


def _fused_network(recipe, weights):
    """The network for INT8, calibrated on some training images as validation sees them: the same on every rank."""
    batches = None
    if weights is None:
        net = create_model(*_network_of(recipe), deploy=True, **recipe.variant.model_args)
    else:
        net = load_weights(weights)
        has, wants = ((x.variant, x.num_classes, x.in_channels) for x in (net, recipe))
        if has != wants:
            texts = (f"{variant.label} of {n} classes and {c} channels" for variant, n, c in (has, wants))
            raise CheckpointError(f"{weights} holds a {' instead of a '.join(texts)}: it cannot be fine-tuned for INT8")
        source = open_split(recipe, "train")
        check_classes(net, source)
        net.metadata = {}
        batches = CalibrationBatches(loader_of(recipe, spread(source, CALIBRATION_IMAGES)))
    if batches is not None and recipe.quantization == variants.QAT:
        net = qat.without_dead_channels(net, batches)
    net = qat.to_trainable_deploy(net, batches)
    if recipe.quantization != variants.QAT:
        return net
    return qat.to_fake_quantized(net, batches, recipe.quantization_per_channel)


def build_step(recipe, net, learning_rates, ranks, scales=None) -> TrainStep:
    """The compiled step with its optimizer and its loss scale; scales: as of `build_network`."""
    optimizer = build_optimizer(
        net,
        learning_rates,
        opt=recipe.opt,
        momentum=recipe.momentum,
        use_nesterov=recipe.use_nesterov,
        betas=recipe.betas,
        eps=recipe.eps,
        weight_decay=recipe.weight_decay,
        weight_decay_filter=recipe.decay_rule,
        layer_decay=recipe.layer_decay,
        scales=recipe_scales(recipe) if scales is None else scales,
    )
    return TrainStep(
        NetworkWithLoss(
            net,
            build_loss(recipe.loss, recipe.label_smoothing),
            recipe.aux_weight,
            prepare=Normalize(recipe.preprocessing),
            penalty=custom_l2.CustomL2(net, recipe.weight_decay) if recipe.custom_l2 else None,
            distillation=_distillation(recipe),
        ),
        optimizer,
        ranks=ranks.size,
        clip_norm=recipe.clip_value if recipe.clip_grad else None,
        loss_scale=_build_loss_scale(recipe),
        ema_decay=recipe.ema_decay if recipe.ema else None,
        accumulation=recipe.gradient_accumulation_steps,
        all_reduce=recipe.all_reduce,
    )


def _distillation(recipe):
    """What compares the network with the float network that it was fine-tuned from; None where the recipe does not."""
    if not recipe.distillation:
        return None
    return Distillation(load_weights(recipe.pretrained), recipe.distillation)


def _build_loss_scale(recipe):
    """The recipe's loss scale; None where nothing can overflow that float32 would not show in the loss itself."""
    dynamic = recipe.loss_scale_type == "dynamic"
    half = recipe.amp_level != "O0" and recipe.amp_dtype == "float16"
    if not dynamic and recipe.loss_scale == 1 and not half:
        return None
    return LossScale(recipe.loss_scale, dynamic, recipe.loss_scale_window, recipe.drop_overflow_update)
