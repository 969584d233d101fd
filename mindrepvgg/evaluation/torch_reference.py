"""A network evaluated by PyTorch straight from a checkpoint's own tensors: the other side of the cross-check.

Nothing here is shared with the package's networks, fusion or converters: names are understood by a few patterns of
this module alone, blocks are found by walking the tensors, and every layer is a call of torch.nn.functional. So the
same error in our code cannot be on both sides.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import numpy as np

from mindrepvgg.errors import CheckpointError
from mindrepvgg.files import open_regular
from mindrepvgg.runtime.optional import import_optional
from mindrepvgg.text import first_line
from mindrepvgg.weights.containers import read_weights
from mindrepvgg.weights.pickles import is_pickle_file, read_pickle_file
from mindrepvgg.weights.torchfile import is_torch_file, read_torch_file

_EPS = 1e-5

# What training leaves in a MindSpore checkpoint beside the weights.
_NOT_WEIGHTS = ("ema.", "moments.", "training_state.")

# A parameter's place: (stage, half of stage 3, block in it), told from its name by the first pattern that matches.
_STEM = re.compile(r"(?:^|\.)(?:stage0|stem)\.(?P<rest>.+)$")
_BLOCKS = (
    # official, MindCV, model zoo, and this package: stage1.0. / stage3_first.blocks.0.
    (
        re.compile(
            r"(?:^|\.)stage(?P<stage>[1-4])(?:_(?P<half>first|second))?\.(?:blocks\.)?(?P<block>\d+)\.(?P<rest>.+)$"
        ),
        0,
    ),
    (re.compile(r"(?:^|\.)stage_(?P<stage>[1-4])\.(?P<block>\d+)\.(?P<rest>.+)$"), 0),  # mmpretrain
    (re.compile(r"(?:^|\.)stages\.(?P<stage>[0-3])\.(?P<block>\d+)\.(?P<rest>.+)$"), 1),  # timm counts from 0
)
_HEAD = re.compile(r"(?:^|\.)(?:linear|head\.fc)\.(?P<rest>weight|bias)$")
_AUX = re.compile(r"(?:^|\.)stage\d(?:_first)?_aux\.")

# What a name within a block means, the first that matches; BN leaves in both frameworks' words. One of several large
# convolutions has its number for a role too.
_ROLES = (
    (re.compile(r"^(?:rbr_reparam|reparam_conv|branch_reparam)\.(weight|bias)$"), "fused"),
    (re.compile(r"^(?:rbr_dense\.conv|conv_kxk\.conv|branch_3x3\.conv|rbr_dense\.0)\.(weight)$"), "dense"),
    (re.compile(r"^(?:rbr_conv|conv_kxk|branch_conv_list)\.(?P<number>\d+)\.(?:conv|bn|norm)\.(\w+)$"), "dense"),
    (re.compile(r"^(?:rbr_scale|conv_scale|branch_scale)\.(?:conv|bn|norm)\.(\w+)$"), "pointwise"),
    (re.compile(r"^rbr_1x1\.(weight)$"), "bare"),
    (re.compile(r"^bn\.(\w+)$"), "outer"),
    (re.compile(r"^conv\.(weight)$"), "large"),
    (re.compile(r"^conv_1x1\.(weight)$"), "small"),
    (re.compile(r"^scale_conv\.(weight)$"), "large_scale"),
    (re.compile(r"^scale_1x1\.(weight)$"), "small_scale"),
    (re.compile(r"^scale_identity\.(weight)$"), "input_scale"),
    (re.compile(r"^(?:rbr_dense\.bn|conv_kxk\.bn|branch_3x3\.norm|rbr_dense\.1)\.(\w+)$"), "dense"),
    (re.compile(r"^(?:rbr_1x1\.conv|conv_1x1\.conv|branch_1x1\.conv|rbr_1x1\.0)\.(weight)$"), "pointwise"),
    (re.compile(r"^(?:rbr_1x1\.bn|conv_1x1\.bn|branch_1x1\.norm|rbr_1x1\.1)\.(\w+)$"), "pointwise"),
    (re.compile(r"^(?:rbr_identity|rbr_skip|identity|branch_norm)\.(\w+)$"), "identity"),
    (re.compile(r"^post_se\.down\.(weight|bias)$"), "post_se_down"),
    (re.compile(r"^post_se\.up\.(weight|bias)$"), "post_se_up"),
    (
        re.compile(
            r"^(?:se\.down|attn\.fc1|se(?:_layer)?\.conv1\.conv|se\.(?:conv_)?reduce|se\.f_ex\.0)\.(weight|bias)$"
        ),
        "se_down",
    ),
    (
        re.compile(
            r"^(?:se\.up|attn\.fc2|se(?:_layer)?\.conv2\.conv|se\.(?:conv_)?expand|se\.f_ex\.2)\.(weight|bias)$"
        ),
        "se_up",
    ),
)
_BN_LEAF = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "mean",
    "running_var": "var",
    "gamma": "gamma",
    "beta": "beta",
    "moving_mean": "mean",
    "moving_variance": "var",
}
_AFFINE, _BN = {"weight", "bias"}, {"gamma", "beta", "mean", "var"}
_LEAVES = {
    **{"fused": _AFFINE, "dense": {"weight", *_BN}, "pointwise": {"weight", *_BN}, "identity": _BN},
    **{"bare": {"weight"}, "outer": _BN},
    **{role: {"weight"} for role in ("large", "small", "large_scale", "small_scale", "input_scale")},
    **{f"{place}_{half}": _AFFINE for place in ("se", "post_se") for half in ("down", "up")},
}


def import_torch():
    """PyTorch. Raises UserError with the pip command where it is missing."""
    return import_optional("torch", "torch", "the cross-check")


class TorchReference:
    """A callable network: images (N, C, H, W) float32 array -> logits (N, classes) float32 array, computed by PyTorch.

    tensors: name -> torch tensor, as the checkpoint holds them, in any project's names. Raises CheckpointError when
    they do not spell out a RepVGG. strides: of the first block of each stage, which no tensor shows.
    """

    def __init__(self, tensors, strides=(2, 2, 2, 2, 2)):
        self._strides = strides
        self._torch = import_torch()
        self._blocks: dict[tuple, dict[str, dict]] = {}
        self._head = {}
        for name, tensor in tensors.items():
            self._place(name, tensor)
        if not self._blocks or set(self._head) != {"weight", "bias"}:
            raise CheckpointError(
                f"the reference finds {len(self._blocks)} RepVGG blocks and head parts {sorted(self._head)} in the file"
            )
        for (stage, half, block), parts in self._blocks.items():
            dense = (
                "dense0" in parts
                or {"dense", "pointwise"} <= parts.keys()
                or {"dense", "bare", "outer"} <= parts.keys()
                or {"large", "outer"} <= parts.keys()
            )
            whole = all(set(leaves) == _LEAVES[role.rstrip("0123456789")] for role, leaves in parts.items())
            if not whole or not ("fused" in parts or dense):
                found = {role: sorted(leaves) for role, leaves in parts.items()}
                raise CheckpointError(f"the reference misses parts of block {block} in stage {stage}.{half}: {found}")

    @property
    def num_classes(self) -> int:
        """How many logits it gives."""
        return len(self._head["bias"])

    @property
    def in_channels(self) -> int:
        """How many channels an image has: its first block is never grouped."""
        parts = self._blocks[min(self._blocks)]
        return next(parts[role] for role in ("fused", "dense", "dense0", "large") if role in parts)["weight"].shape[1]

    def _place(self, name, tensor):
        """Sort one tensor into its block or the head; auxiliary heads and counters have no part in inference."""
        if _AUX.search(name) or name.endswith("num_batches_tracked"):
            return
        if head := _HEAD.search(name):
            self._head[head["rest"]] = tensor.float()
            return
        place, rest = _locate(name)
        if place is None:
            return
        for pattern, role in _ROLES:
            if match := pattern.match(rest):
                leaf = match[match.re.groups]
                normalises = role in ("dense", "pointwise", "identity", "outer")
                if normalises and not rest.endswith((".conv.weight", ".0.weight")):
                    leaf = _BN_LEAF.get(leaf, leaf)
                role += match.groupdict().get("number", "")
                self._blocks.setdefault(place, {}).setdefault(role, {})[leaf] = tensor.float()
                return
        raise CheckpointError(f"the reference does not know what {name} is")

    def __call__(self, images):
        """Logits (N, classes) of images (N, C, H, W), as arrays."""
        torch = self._torch
        with torch.no_grad():
            x = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))
            for place in sorted(self._blocks):
                stride = 1 if _keeps_size(place) else self._strides[place[0]]
                x = self._block(x, self._blocks[place], stride)
            logits = torch.nn.functional.linear(x.mean((2, 3)), self._head["weight"], self._head["bias"])
        return logits.numpy()

    def _block(self, x, parts, stride):
        functional = self._torch.nn.functional
        if "fused" in parts:
            y = self._convolve(x, parts["fused"]["weight"], stride, parts["fused"]["bias"])
        else:
            y = 0
            for role, part in parts.items():
                if role == "bare":
                    y = y + self._convolve(x, part["weight"], stride)
                elif role in ("large", "small"):
                    y = y + self._scale(self._convolve(x, part["weight"], stride), parts, role)
                elif role.startswith(("dense", "pointwise")):
                    y = y + self._normalise(self._convolve(x, part["weight"], stride), part)
            if "identity" in parts:
                y = y + self._normalise(x, parts["identity"])
            if "input_scale" in parts:
                y = y + self._scale(x, parts, "input")
            if "outer" in parts:
                same = "bare" in parts and stride == 1 and x.shape[1] == y.shape[1]
                y = self._normalise(y + x if same else y, parts["outer"])
        if "se_down" in parts:
            y = self._excite(y, parts["se_down"], parts["se_up"])
        y = functional.relu(y)
        if "post_se_down" in parts:
            y = self._excite(y, parts["post_se_down"], parts["post_se_up"])
        return y

    def _convolve(self, x, kernel, stride, bias=None):
        if kernel.ndim == 5:  # MegEngine: (groups, out / groups, in / groups, kh, kw)
            kernel = kernel.flatten(0, 1)
        groups = x.shape[1] // kernel.shape[1]
        bias = None if bias is None else bias.flatten()
        return self._torch.nn.functional.conv2d(
            x, kernel, bias, stride=stride, padding=kernel.shape[-1] // 2, groups=groups
        )

    def _scale(self, x, parts, role):
        scale = parts.get(f"{role}_scale")
        return x if scale is None else x * scale["weight"][:, None, None]

    def _normalise(self, x, bn):
        mean, var, gamma, beta = (bn[leaf].flatten() for leaf in ("mean", "var", "gamma", "beta"))
        return self._torch.nn.functional.batch_norm(x, mean, var, gamma, beta, eps=_EPS)

    def _excite(self, x, down, up):
        functional = self._torch.nn.functional
        pooled = x.mean((2, 3), keepdim=True)
        squeezed = functional.relu(functional.conv2d(pooled, down["weight"], down["bias"].flatten()))
        return x * self._torch.sigmoid(functional.conv2d(squeezed, up["weight"], up["bias"].flatten()))


def _locate(name):
    """A parameter's ((stage, half, block), name within the block), or (None, '') when it belongs to no block."""
    for pattern, offset in _BLOCKS:
        if match := pattern.search(name):
            half = {"first": 0, "second": 1, None: 0}[match.groupdict().get("half")]
            return (int(match["stage"]) + offset, half, int(match["block"])), match["rest"]
    if match := _STEM.search(name):
        return (0, 0, 0), match["rest"]
    return None, ""


def _keeps_size(place):
    """Stages start with their stride; the second half of RepVGGplus's stage 3 goes on where the first ended."""
    _, half, block = place
    return block > 0 or half == 1


def read_tensors(path, averaged=False):
    """A checkpoint's own tensors by name, read by its own framework: torch.load, safetensors, or MindSpore.

    What PyTorch does not read, MegEngine's pickles and files with a class in them, goes through the inert reader.
    averaged: take the exponential moving average where the file keeps one beside the raw weights.
    Raises CheckpointError when the file cannot be read, or no weights are found in it.
    """
    torch = import_torch()
    path = Path(path)
    with open_regular(path, "a checkpoint", CheckpointError) as file:
        start = file.read(9)
    try:
        return _read_tensors(path, start, torch, averaged)
    except CheckpointError:
        raise
    except Exception as error:  # three frameworks, each with errors of its own for a file that is damaged
        raise CheckpointError(f"{path} cannot be read as the reference: {first_line(error)}") from error


def _read_tensors(path, start, torch, averaged):
    if start[8:9] == b"{":
        from safetensors.torch import load_file

        return load_file(path)
    if is_torch_file(path):
        return _state_dict(path, _load_torch(path, torch), averaged)
    if is_pickle_file(path):
        return _state_dict(path, _as_tensors(read_pickle_file(path), torch), averaged)
    arrays = _load_mindspore(path)
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    kept = {name.removeprefix("ema."): tensor for name, tensor in tensors.items() if name.startswith("ema.")}
    if averaged and kept:
        return kept
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(_NOT_WEIGHTS)}


def _load_mindspore(path):
    """The arrays that MindSpore finds in a checkpoint of its own."""
    import mindspore

    try:
        loaded = mindspore.load_checkpoint(str(path))
    except ValueError as error:
        # It refuses another suffix, and from 2.10 on a file larger than the memory that is wholly unused, which the
        # system keeps small.
        if path.suffix == ".ckpt" and "memory" not in str(error):
            raise
        return read_weights(path).arrays
    return {name: value.asnumpy() for name, value in loaded.items() if not isinstance(value, str)}


def _load_torch(path, torch):
    """What torch.save wrote."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        # PyTorch refuses the whole file for a class it does not trust, such as a pickled configuration.
        return _as_tensors(read_torch_file(path), torch)


def _state_dict(path, content, averaged):
    """The state dict in a file's content, found among its wrappers."""
    found = {}
    _collect(content, "", found)
    averages = [key for key in found if "ema" in key.split(".")[-1]]
    raw = [key for key in found if key not in averages]
    # mmpretrain's hook swaps the two: its state_dict is the average, its ema_state_dict the raw weights.
    if "meta" in content and "ema_state_dict" in found:
        averages, raw = raw, averages
    chosen = (averages if averaged else raw) or averages or raw
    if not chosen:
        raise CheckpointError(f"{path} holds no state dict the reference can find")
    return found[max(chosen, key=lambda key: len(found[key]))]


def _collect(content, key, found):
    """Gather every mapping of at least two tensors, by its path in the nested content."""
    if not isinstance(content, dict):
        return
    tensors = {name: value for name, value in content.items() if hasattr(value, "is_floating_point")}
    if len(tensors) > 1 and all(isinstance(name, str) for name in tensors):
        found[key] = tensors
    for name, value in content.items():
        _collect(value, f"{key}.{name}" if key else str(name), found)


def _as_tensors(content, torch):
    """The inert reader's arrays as tensors, containers kept."""
    if isinstance(content, np.ndarray):
        return torch.from_numpy(content)
    if isinstance(content, dict):
        return {name: _as_tensors(value, torch) for name, value in content.items()}
    return content
