"""A network of RepOpt-VGG's layout in float64 NumPy, forward and backward, and RepOptimizer's steps.

The blocks are linear additions, whose branches are computed one by one, or single convolutions. Nothing of the package
is used but the names of the parameters.
"""

import numpy as np

EPS = 1e-5


def _pieces(x, size, stride):
    """For each place of a kernel: its indices, and what it sees of the padded input, as slices."""
    height, width = (-(-side // stride) for side in x.shape[2:])
    padded = np.pad(x, ((0, 0), (0, 0), (size // 2,) * 2, (size // 2,) * 2))
    places = [(i, j) for i in range(size) for j in range(size)]
    return padded, [
        ((i, j), np.s_[:, :, i : i + stride * (height - 1) + 1 : stride, j : j + stride * (width - 1) + 1 : stride])
        for i, j in places
    ]


def convolve(x, kernel, stride):
    """The convolution, and the function that gives the gradients of input and kernel."""
    size = kernel.shape[2]
    padded, pieces = _pieces(x, size, stride)
    y = sum(np.einsum("nchw,oc->nohw", padded[part], kernel[:, :, i, j]) for (i, j), part in pieces)

    def back(dy):
        into, of_kernel = np.zeros_like(padded), np.zeros_like(kernel)
        for (i, j), part in pieces:
            of_kernel[:, :, i, j] = np.einsum("nohw,nchw->oc", dy, padded[part])
            into[part] += np.einsum("nohw,oc->nchw", dy, kernel[:, :, i, j])
        rim = size // 2
        return into[:, :, rim : rim + x.shape[2], rim : rim + x.shape[3]], of_kernel

    return y, back


def normalise(x, gamma, beta):
    """BN by the batch, and its gradients."""
    mean, variance = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
    root = np.sqrt(variance + EPS)
    normal = (x - mean) / root

    def back(dy):
        of_gamma, of_beta = (dy * normal).sum((0, 2, 3)), dy.sum((0, 2, 3))
        count = dy.size / len(gamma)
        inner = dy - (of_beta / count)[:, None, None] - normal * (of_gamma / count)[:, None, None]
        return inner * gamma[:, None, None] / root, of_gamma, of_beta

    return normal * gamma[:, None, None] + beta[:, None, None], back


class Network:
    """A stem and stages of blocks, mean, linear layer, cross-entropy.

    Args:
        blocks: name -> stride, from input to output.
        values: name -> float64 array of every parameter that is trained; changed by `step`.
        scales: name -> array, of a network of linear additions; those of the input are among `values`. None: one
            convolution a block.
    """

    def __init__(self, blocks, values, scales=None):
        self.blocks, self.values, self.scales = blocks, values, scales
        self.buffers = {}

    def gradients(self, images, labels):
        """The logits, and the loss's gradient of every parameter."""
        x, stack, found = images.astype(np.float64), [], {}
        for name, stride in self.blocks.items():
            y, parts = self._branches(name, x, stride)
            y, norm = normalise(y, self.values[f"{name}.bn.gamma"], self.values[f"{name}.bn.beta"])
            stack.append((name, parts, norm, y > 0))
            x = np.maximum(y, 0)
        features = x.mean((2, 3))
        logits = features @ self.values["linear.weight"].T + self.values["linear.bias"]
        chances = np.exp(logits - logits.max(1, keepdims=True))
        chances /= chances.sum(1, keepdims=True)
        d = (chances - np.eye(logits.shape[1])[labels]) / len(labels)
        found["linear.weight"], found["linear.bias"] = d.T @ features, d.sum(0)
        dx = np.broadcast_to((d @ self.values["linear.weight"])[:, :, None, None] / x[0, 0].size, x.shape)
        for name, parts, norm, alive in reversed(stack):
            dy, found[f"{name}.bn.gamma"], found[f"{name}.bn.beta"] = norm(dx * alive)
            dx = 0
            for into in parts:
                more, own = into(dy)
                dx = dx + more
                found |= own
        return logits, found

    def _branches(self, name, x, stride):
        """The sum of a block's branches, and for each the gradients: of its input, and of its parameters by name."""
        if self.scales is None:
            y, back = convolve(x, self.values[f"{name}.conv.weight"], stride)

            def of_all(dy):
                dx, of_kernel = back(dy)
                return dx, {f"{name}.conv.weight": of_kernel}

            return y, [of_all]
        total, parts = 0, []
        for conv, scale in (("conv", "scale_conv"), ("conv_1x1", "scale_1x1")):
            path, factor = f"{name}.{conv}.weight", self.scales[f"{name}.{scale}.weight"][:, None, None]
            y, back = convolve(x, self.values[path], stride)
            total = total + factor * y

            def into(dy, path=path, factor=factor, back=back):
                dx, of_kernel = back(factor * dy)
                return dx, {path: of_kernel}

            parts.append(into)
        path = f"{name}.scale_identity.weight"
        if path in self.values:
            total = total + self.values[path][:, None, None] * x
            parts.append(lambda dy: (self.values[path][:, None, None] * dy, {path: (dy * x).sum((0, 2, 3))}))
        return total, parts

    def sgd(self, gradients, lr, momentum, decay, nesterov, multipliers=None, after_decay=False, frozen=None):
        """One step; multipliers: name -> array, for RepOptimizer's; after_decay, frozen: what would be wrong.

        frozen: how the names of parameters end that are not trained.
        """
        for name, gradient in gradients.items():
            if frozen and name.endswith(frozen):
                continue
            factor = (multipliers or {}).get(name, 1)
            own = decay * decays(name) * self.values[name]
            direction = (gradient + own) * factor if after_decay else gradient * factor + own
            self.buffers[name] = momentum * self.buffers[name] + direction if name in self.buffers else direction
            step = direction + momentum * self.buffers[name] if nesterov else self.buffers[name]
            self.values[name] = self.values[name] - lr * step

    def adamw(self, gradients, lr, betas, eps, decay, multipliers):
        """One step of RepOptimizer's AdamW."""
        for name, gradient in gradients.items():
            factor, value = multipliers.get(name, 1), self.values[name]
            gradient = gradient * factor
            m, v, t = self.buffers.get(name, (0, 0, 0))
            m, v, t = betas[0] * m + (1 - betas[0]) * gradient, betas[1] * v + (1 - betas[1]) * gradient**2, t + 1
            self.buffers[name] = m, v, t
            step = factor * m / (1 - betas[0] ** t) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
            self.values[name] = value - lr * decay * decays(name) * value - lr * step


def decays(name):
    """As published: kernels and the input's scale decay; BN and the linear layer's bias do not."""
    return name.endswith(".weight")


def multiplier(scales, block, shape, power, point=True):
    """What RepOptimizer multiplies the gradient of a block's kernel by; point: with what the 1x1 adds."""
    s, t = (scales[f"{block}.{name}.weight"] for name in ("scale_conv", "scale_1x1"))
    factor = np.empty(shape)
    for c in range(shape[0]):
        factor[c] = abs(s[c]) ** power
        factor[c, :, 1, 1] += abs(t[c]) ** power * point
        if f"{block}.scale_identity.weight" in scales:
            factor[c, c, 1, 1] += 1
    return factor


def one_kernel(values, scales, block):
    """The kernel that a block of branches is."""
    s, t = (scales[f"{block}.{name}.weight"][:, None, None, None] for name in ("scale_conv", "scale_1x1"))
    kernel = s * values[f"{block}.conv.weight"]
    kernel[:, :, 1, 1] += (t * values[f"{block}.conv_1x1.weight"])[:, :, 0, 0]
    identity = scales.get(f"{block}.scale_identity.weight")
    if identity is not None:
        for c, u in enumerate(identity):
            kernel[c, c, 1, 1] += u
    return kernel
