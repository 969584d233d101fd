"""AdamW as one cell of the compiled step."""

from __future__ import annotations

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops


class AdamW(nn.Optimizer):
    """AdamW with bias correction: w = w - lr * (m' / (sqrt(v') + eps) + decay * w).

    m = beta1 * m + (1 - beta1) * g and v = beta2 * v + (1 - beta2) * g ** 2 are running means of every gradient and of
    its square, from 0 on. After t updates m' = m / (1 - beta1 ** t) and v' = v / (1 - beta2 ** t). The divisors are
    kept as running means of 1, so that they are as exact as the moments; 1 - beta2 ** t in float32 is not.
    Source: arXiv:1711.05101, algorithm 2 with alpha = 1 and eta_t = lr, as in PyTorch.
    """

    # nn.AdamWeightDecay has no bias correction, nn.Adam's decay is part of the gradient, the rate of
    # experimental.optim.AdamW changes only from outside the graph. MindCV's is right, but on a CPU it takes some three
    # times as long to compile and to run as this one, which has the fused kernel of nn.AdamWeightDecay.

    def __init__(self, groups, learning_rates, betas, eps):
        super().__init__(learning_rates, groups)
        self.beta1, self.beta2 = (Tensor([beta], ms.float32) for beta in betas)
        self.eps = eps
        self.decays = tuple(self.group_weight_decay)
        self.moments1 = self.parameters.clone("moment1", init="zeros")
        self.moments2 = self.parameters.clone("moment2", init="zeros")
        self.weight1 = Parameter(Tensor([0], ms.float32), "moment1_weight", requires_grad=False)
        self.weight2 = Parameter(Tensor([0], ms.float32), "moment2_weight", requires_grad=False)
        self.fused = ops.AdamWeightDecay()

    @ms.jit(backend="ms_backend")
    def construct(self, gradients):
        """Update the parameters by their gradients."""
        lr = self.get_lr()
        self.assignadd(self.global_step, self.global_step_increase_tensor)
        weight1 = self.beta1 * self.weight1 + (1 - self.beta1)
        weight2 = self.beta2 * self.weight2 + (1 - self.beta2)
        ops.assign(self.weight1, weight1)
        ops.assign(self.weight2, weight2)
        # The kernel's step with m and v as they are: the corrections go into its rate, eps and decay.
        root = ops.sqrt(weight2)
        eps, decay_factor = self.eps * root, weight1 / root
        if self.is_group_lr:
            rates = self.hyper_map(ops.partial(self._rate, root, weight1), lr)
        else:
            rates = self._rate(root, weight1, lr)
        return self.apply(eps, decay_factor, rates, gradients)

    def apply(self, eps, decay_factor, rates, gradients):
        """Update moments and parameters; `rates` is one rate, or one for each parameter (`is_group_lr`)."""
        if self.is_group_lr:
            update = ops.partial(self._update, eps, decay_factor)
            return self.hyper_map(update, rates, self.parameters, self.moments1, self.moments2, gradients, self.decays)
        update = ops.partial(self._update, eps, decay_factor, rates)
        return self.hyper_map(update, self.parameters, self.moments1, self.moments2, gradients, self.decays)

    def _rate(self, root, weight1, lr):
        # In this order: a run that an older version began goes on bit for bit.
        return lr * root / weight1

    def _update(self, eps, decay_factor, rate, w, m, v, gradient, decay):
        self.fused(w, m, v, rate, self.beta1, self.beta2, eps, decay * decay_factor, gradient)
        return True
