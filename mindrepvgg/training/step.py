"""One training step as one cell, so that graph mode compiles it as one graph."""

from __future__ import annotations

import contextlib
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, amp, nn, ops

from mindrepvgg.errors import RecipeError
from mindrepvgg.recipe.rules import NO_CLIPPING
from mindrepvgg.training.all_reduce import gradient_mean
from mindrepvgg.training.repoptimizer import Multiplied

_SCALE_FACTOR = 2

# Updates after which the moving average of the weights has come two thirds of the way to its full decay.
_EMA_WARMUP = 2000

# What the forward pass changes, and not the optimizer.
_STATISTICS = ("moving_mean", "moving_variance", "moving_minimum", "moving_maximum")

_average_into = ops.MultitypeFuncGraph("average_into")
_add_into = ops.MultitypeFuncGraph("add_into")
_copy_into = ops.MultitypeFuncGraph("copy_into")
_clear = ops.MultitypeFuncGraph("clear")
_multiply = ops.MultitypeFuncGraph("multiply")


@_average_into.register("Tensor", "Tensor", "Tensor")
def _average_one(decay, average, value):
    return ops.assign(average, average * decay + value * (1 - decay))


@_add_into.register("Tensor", "Tensor")
def _add_one(total, value):
    return ops.assign_add(total, value)


@_copy_into.register("Tensor", "Tensor")
def _copy_one(target, value):
    return ops.assign(target, value)


@_clear.register("Tensor")
def _clear_one(target):
    return ops.assign(target, ops.zeros_like(target))


@_multiply.register("Tensor", "Tensor")
def _multiply_one(factor, value):
    return value * factor


class NetworkWithLoss(nn.Cell):
    """Loss of a batch, times `scale`: the network's, plus `aux_weight` times that of every auxiliary head.

    images (N, C, H, W), or what `prepare` takes, targets (N,) int32 or (N, classes) float32, scale float32 -> scalar.

    Args:
        net: the network.
        loss_fn: (logits, targets) -> scalar; it gets logits in float32.
        aux_weight: weight of each auxiliary head.
        prepare: a cell that the images go through before the network, such as `Normalize`.
        penalty: a cell without inputs whose scalar is added, such as `CustomL2`.
        distillation: a cell (images, logits, loss) -> loss, such as `Distillation`, for a network without auxiliary
            heads.
    """

    def __init__(self, net, loss_fn, aux_weight=0.1, prepare=None, penalty=None, distillation=None):
        super().__init__(auto_prefix=False)
        self.prepare = prepare
        self.net = net
        self.loss_fn = loss_fn
        self.aux_weight = aux_weight
        self.penalty = penalty
        self.distillation = distillation

    def construct(self, images, targets, scale):
        """The loss of a batch, times `scale`."""
        if self.prepare is not None:
            images = self.prepare(images)
        outputs = self.net(images)
        loss = self._loss(outputs, targets)
        if self.distillation is not None:
            loss = self.distillation(images, outputs, loss)
        if self.penalty is not None:
            loss = loss + self.penalty()
        return scale * loss

    def _loss(self, outputs, targets):
        if not isinstance(outputs, tuple):
            return self.loss_fn(outputs.astype(ms.float32), targets)
        loss = self.loss_fn(outputs[0].astype(ms.float32), targets)
        for aux in outputs[1:]:
            loss = loss + self.aux_weight * self.loss_fn(aux.astype(ms.float32), targets)
        return loss


class LossScale:
    """How the loss is scaled in the backward pass, and whether an update that overflows is skipped.

    Args:
        value: the scale; a dynamic one begins with it.
        dynamic: halve the scale after an overflow, double it after `window` updates without one; 1 is the least.
        window: see `dynamic`.
        skip: leave out an update, on all ranks, if its gradients or BN statistics are not finite on one of them. The
            statistics then return to those of the last good update. A dynamic scale always skips.
    """

    def __init__(self, value=1.0, dynamic=False, window=2000, skip=True):
        self.skip = skip or dynamic
        scaler = amp.DynamicLossScaler(value, _SCALE_FACTOR, window) if dynamic else amp.StaticLossScaler(value)
        self.scaler = scaler
        if dynamic:
            scaler.scale_value.name, scaler.counter.name = "loss_scale", "loss_scale_counter"
        self.state = (scaler.scale_value, scaler.counter) if dynamic else ()

    @property
    def value(self) -> float:
        """The scale as it is now."""
        return float(self.scaler.scale_value.asnumpy())


def _with_copy(parameters, prefix):
    parameters = ParameterTuple(parameters)
    return parameters, parameters.clone(prefix, init="same")


class TrainStep(nn.Cell):
    """Forward, loss, gradients, all-reduce, clip, update and moving average, as one graph.

    images (N, C, H, W), targets (N,) int32 or (N, classes) float32 -> (the step's loss before the update, averaged
    over the ranks; whether the update was made).

    Args:
        net_with_loss: a `NetworkWithLoss`.
        optimizer: of the network's trainable parameters.
        ranks: the number of processes; above 1, gradients and loss are averaged over them.
        clip_norm: the largest global norm of the gradients; None: they are not clipped.
        loss_scale: a `LossScale`; None: the loss is not scaled.
        ema_decay: keep a moving average of the network's parameters, BN statistics included, in `ema`; None: do not.
        accumulation: with k above 1, `accumulate` takes the first k - 1 batches of a step and this cell the last.
        all_reduce: how the gradients are averaged over the ranks; a key of `choices.ALL_REDUCES`.
    """

    def __init__(
        self,
        net_with_loss,
        optimizer,
        ranks=1,
        clip_norm=None,
        loss_scale=None,
        ema_decay=None,
        accumulation=1,
        all_reduce="bundled",
    ):
        super().__init__(auto_prefix=False)
        if clip_norm is not None and isinstance(optimizer, Multiplied):
            raise RecipeError(NO_CLIPPING)
        net = net_with_loss.net
        weights = optimizer.parameters
        self.backward = _Backward(net_with_loss, weights, loss_scale)
        self.optimizer = optimizer
        self.clip_norm = clip_norm
        self.ranks = ranks
        self.reduce_gradients = gradient_mean(all_reduce, weights, ranks) if ranks > 1 else None
        self.all_reduce = ops.AllReduce() if ranks > 1 else None

        self.loss_scale = loss_scale
        self.scaler: Any = loss_scale.scaler if loss_scale else None
        self.may_skip = loss_scale is not None and loss_scale.skip
        self.adjusts_scale = bool(loss_scale and loss_scale.state)
        self.statistics, self.good_statistics = _with_copy(bn_statistics(net), "good") if self.may_skip else ((), ())

        self.ema_decay = ema_decay
        self.averaged, self.ema = _with_copy(net.get_parameters(), "ema") if ema_decay is not None else ((), ())
        self.updates = Parameter(Tensor(0, ms.float32), "ema_updates", requires_grad=False)

        self.accumulation = accumulation
        self.accumulated = weights.clone("accumulated", init="zeros") if accumulation > 1 else ()
        self.accumulated_loss = Parameter(Tensor(0, ms.float32), "accumulated_loss", requires_grad=False)
        self.accumulate = _Accumulate(self.backward, self.accumulated, self.accumulated_loss)

        self.hyper_map = ops.HyperMap()
        self.set_train()

    @property
    def state(self) -> dict[str, Parameter]:
        """What a step leaves behind besides the network and the optimizer, by name; between two steps only."""
        scale = self.loss_scale.state if self.loss_scale else ()
        average = (self.updates, *self.ema) if self.ema_decay is not None else ()
        return {parameter.name: parameter for parameter in (*scale, *average)}

    @contextlib.contextmanager
    def averaged_weights(self):
        """Run the body with the moving average in the network's parameters, then put the trained ones back."""
        trained = [parameter.asnumpy().copy() for parameter in self.averaged]
        try:
            for parameter, average in zip(self.averaged, self.ema, strict=True):
                ops.assign(parameter, average)
            yield
        finally:
            for parameter, values in zip(self.averaged, trained, strict=True):
                ops.assign(parameter, Tensor(values))

    def construct(self, images, targets):
        """Train on a batch, (N, C, H, W) and (N,) or (N, classes); what it returns, the class says."""
        loss, gradients = self.backward(images, targets)
        if self.accumulation > 1:
            loss = (loss + self.accumulated_loss) / self.accumulation
            self.hyper_map(_add_into, self.accumulated, gradients)
            factor = Tensor(1 / self.accumulation, ms.float32)
            gradients = self.hyper_map(ops.partial(_multiply, factor), self.accumulated)
        if self.reduce_gradients is not None:
            gradients = self.reduce_gradients(gradients)
        if not self.may_skip:
            if self.all_reduce is not None:
                loss = self.all_reduce(loss) / self.ranks
            loss = ops.depend(loss, self._update(gradients))
            loss = ops.depend(loss, self._clear_accumulated())
            return loss, Tensor(True)

        finite = ops.logical_and(amp.all_finite(gradients), amp.all_finite(self.statistics))
        if self.all_reduce is not None:
            # One device may see its overflow where the others see a saturated sum: they must agree.
            total = self.all_reduce(ops.stack((loss, 1 - finite.astype(ms.float32))))
            loss, finite = total[0] / self.ranks, total[1] == 0
        if self.adjusts_scale:
            self.scaler.adjust(finite)
        if finite:
            loss = ops.depend(loss, self._update(gradients))
            loss = ops.depend(loss, self.hyper_map(_copy_into, self.good_statistics, self.statistics))
        else:
            loss = ops.depend(loss, self.hyper_map(_copy_into, self.statistics, self.good_statistics))
        loss = ops.depend(loss, self._clear_accumulated())
        return loss, finite

    def _update(self, gradients):
        if self.clip_norm is not None:
            gradients = ops.clip_by_global_norm(gradients, self.clip_norm)
        done = self.optimizer(gradients)
        if self.ema_decay is not None:
            updates = ops.depend(self.updates, done) + 1
            decay = self.ema_decay * (1 - ops.exp(-updates / _EMA_WARMUP))
            ops.assign(self.updates, updates)
            done = self.hyper_map(ops.partial(_average_into, decay), self.ema, self.averaged)
        return done

    def _clear_accumulated(self):
        if self.accumulation > 1:
            self.hyper_map(_clear, self.accumulated)
            ops.assign(self.accumulated_loss, Tensor(0, ms.float32))
        return True

    def accept_statistics(self):
        """Take the BN statistics as they are now for good ones; after they were changed from outside."""
        for good, parameter in zip(self.good_statistics, self.statistics, strict=True):
            # Not set_data: what a graph uses in a branch only, it would go on writing to the memory of before.
            ops.assign(good, parameter)


class _Backward(nn.Cell):
    """Loss and gradients of a batch, both unscaled."""

    def __init__(self, net_with_loss, weights, loss_scale):
        super().__init__(auto_prefix=False)
        self.net_with_loss = net_with_loss  # so that set_train reaches it
        self.value_and_grad = ms.value_and_grad(net_with_loss, None, weights)
        self.scaler = loss_scale.scaler if loss_scale else None
        self.one = Tensor(np.float32(1))

    def construct(self, images, targets):
        if self.scaler is None:
            return self.value_and_grad(images, targets, self.one)
        scale = self.scaler.scale_value
        loss, gradients = self.value_and_grad(images, targets, scale)
        return loss / scale, self.scaler.unscale(gradients)


class _Accumulate(nn.Cell):
    """A batch whose gradients are kept for the step's last one; images, targets -> its loss, of this rank alone."""

    def __init__(self, backward, accumulated, accumulated_loss):
        super().__init__(auto_prefix=False)
        self.backward = backward
        self.accumulated = accumulated
        self.accumulated_loss = accumulated_loss
        self.hyper_map = ops.HyperMap()
        self.set_train()

    def construct(self, images, targets):
        loss, gradients = self.backward(images, targets)
        self.hyper_map(_add_into, self.accumulated, gradients)
        ops.assign_add(self.accumulated_loss, loss)
        return loss


def bn_statistics(net) -> list[Parameter]:
    """The moving means and variances of a network, and the moving extremes of its quantisers."""
    return [parameter for parameter in net.get_parameters() if is_bn_statistic(parameter)]


def is_bn_statistic(parameter) -> bool:
    """Whether a parameter is a moving statistic: of a BN, or the extremes an activation's quantiser has seen."""
    return parameter.name.endswith(_STATISTICS)
