"""Checkpoints as other projects write them, each file by the framework it belongs to, and the logits they must give.

Nothing of the package takes part in making a file or the truth to compare with: the networks are those of
`torch_reference`, and their names are spelled out in `dialect_names`.
"""

import collections
import functools
import pathlib
import pickle

import mindspore as ms
import numpy as np
import torch
from mindspore import Tensor
from safetensors.torch import save_file
from torch import nn

from mindrepvgg.models import variants
from support import images, relative_difference
from support.dialect_names import VARIANTS, shapes_in
from support.torch_reference import Network

# How each project's files come, the most usual first.
CONTAINERS = {
    "official": ("legacy", "zip"),
    "repvggplus": ("zip", "legacy"),
    "timm": ("safetensors", "zip"),
    "mmpretrain": ("zip", "safetensors"),
    "mindcv": ("ckpt", "safetensors"),
    "modelzoo": ("ckpt",),
    "basecls": ("pickle", "zip"),
    "mindrepvgg": ("ckpt", "safetensors"),
}

SUFFIXES = {"zip": ".pth", "legacy": ".pth", "safetensors": ".safetensors", "ckpt": ".ckpt", "pickle": ".pkl"}


PROJECTS = {
    "main.py": "legacy",
    "timm": "zip",
    "timm, model_ema": "zip",
    "mmpretrain": "legacy",
    "MindCV": "ckpt",
    "pth.tar": "legacy",
}


def variant_of(name):
    return VARIANTS.get(name) or variants.find(name)


def torch_network(name, deploy=False, classes=7, channels=3, seed=0):
    """A PyTorch network in inference whose every value matters, as after training; do not change it.

    BN's statistics are roughly those of its inputs, so that the signal keeps its size through 47 blocks; a quarter of
    the gammas are negative; SE lets most of the signal through.
    """
    return _torch_network(name, deploy, classes, channels, seed)


@functools.lru_cache(maxsize=2)  # the large ones take a second to make, and half a gigabyte
def _torch_network(name, deploy, classes, channels, seed):
    generator = torch.Generator().manual_seed(seed)
    net = Network(variant_of(name), classes, channels, deploy).train()
    norms = {path: module for path, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)}
    # SE takes a little from every map, which no BN makes up for in deploy form.
    gain = 2.8 if deploy and variant_of(name).se else 2

    def fill(tensor, low, high):
        tensor.uniform_(low, high, generator=generator)

    with torch.no_grad():
        for path, module in net.named_modules():
            if isinstance(module, nn.Conv2d):
                variance = (2 if "se." in path else gain) / module.weight[0].numel()
                module.weight.normal_(0, variance**0.5, generator=generator)
                if module.bias is not None:
                    fill(module.bias, *((2, 4) if path.endswith("se.up") else (-0.1, 0.1)))
        fill(net.linear.weight, *(bound * net.linear.in_features**-0.5 for bound in (-1, 1)))
        fill(net.linear.bias, -0.1, 0.1)
        for path, norm in norms.items():
            # The identity leads, as where training succeeds: in a wild network rounding grows from block to block.
            leads = path.endswith("identity")
            fill(norm.weight, *((0.8, 1.6) if leads else (0.2, 0.5)))
            norm.weight[:: 16 if leads else 4] *= -1
            fill(norm.bias, -0.2, 0.2)
            norm.momentum = 1
        if norms:
            net(torch.randn(4, channels, 64, 64, generator=generator))
        for norm in norms.values():
            shift, factor = torch.empty(2, len(norm.bias))
            fill(shift, -0.3, 0.3)
            fill(factor, 0.7, 1.5)
            norm.running_mean += shift * norm.running_var.sqrt()
            norm.running_var.mul_(factor).clamp_(min=0.1)
            norm.num_batches_tracked.fill_(400)
    return net.eval()


def official_state(net):
    """A network's tensors under the authors' names."""
    return dict(net.state_dict())


def renamed(state, dialect, variant, deploy=False, classes=7, channels=3, aux=True):
    """A network's tensors, which have the authors' names, as another project has them."""
    published = shapes_in("repvggplus" if variant.aux_heads else "official", variant, deploy, classes, channels, aux)
    assert published.keys() == state.keys()
    values = iter([state[name] for name in published if "num_batches" not in name])
    return {
        name: torch.tensor(400) if "num_batches" in name else next(values).reshape(shape)
        for name, shape in shapes_in(dialect, variant, deploy, classes, channels, aux).items()
    }


def without_aux(state):
    return {name: tensor for name, tensor in state.items() if "_aux" not in name}


def theirs(dialect, name, deploy=False, classes=7, channels=3, seed=0):
    """The tensors of `torch_network` as a project names them."""
    net = torch_network(name, deploy, classes, channels, seed)
    return renamed(official_state(net), dialect, variant_of(name), deploy, classes, channels)


def write(path, content, container=None):
    """Write tensors by name, or for PyTorch anything, as their own framework does; by the suffix unless told."""
    path = pathlib.Path(path)
    container = container or {".safetensors": "safetensors", ".ckpt": "ckpt"}.get(path.suffix, "zip")
    if container == "safetensors":
        save_file({name: tensor.contiguous() for name, tensor in content.items()}, path)
    elif container == "ckpt":
        entries = [
            {"name": name, "data": tensor if isinstance(tensor, Tensor) else Tensor(tensor.numpy())}
            for name, tensor in content.items()
        ]
        written = path.with_name("for_a_moment.ckpt")  # MindSpore would change another suffix
        ms.save_checkpoint(entries, str(written))
        written.rename(path)
    elif container == "pickle":  # as MegEngine's
        state = {name: tensor.numpy() for name, tensor in content.items()}
        path.write_bytes(pickle.dumps({"state_dict": state, "acc1": 72.4}))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=container == "zip")
    return path


def logits_of(net, x):
    """A network's logits on an array, of either framework."""
    if isinstance(net, nn.Module):
        with torch.no_grad():
            return net(torch.from_numpy(x)).numpy()
    return net(Tensor(x)).asnumpy()


def same_logits(net, reference, size=(64, 48)):
    """Whether both answer alike; the answers must depend on the image, or the comparison would say nothing."""
    x = images(2, net.in_channels, *size)
    expected = logits_of(reference, x)
    assert np.abs(expected[0] - expected[1]).max() > 1e-2 * np.abs(expected).max()
    return relative_difference(logits_of(net, x), expected) < 1e-4


class Config(collections.UserDict):
    """Stands for the configuration class that the official main.py pickles: PyTorch does not trust it."""


class Optimizer:
    """Any object of a training script."""


def prefixed(state, prefix):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def wrapped(project, raw, averaged):
    """What a project's training script saves for raw and averaged weights, both under the authors' names."""
    variant = VARIANTS["plain"]
    if project == "main.py":
        return {"model": raw, "optimizer": {"state": {}}, "ema": averaged, "config": Config(lr=0.1), "epoch": 3}
    if project == "timm":
        raw, averaged = renamed(raw, "timm", variant), renamed(averaged, "timm", variant)
        return {"state_dict": prefixed(raw, "_orig_mod."), "state_dict_ema": averaged, "args": Config(lr=0.1)}
    if project == "timm, model_ema":
        raw, averaged = renamed(raw, "timm", variant), renamed(averaged, "timm", variant)
        return {"model": raw, "model_ema": prefixed(averaged, "module."), "optimizer": Optimizer()}
    if project == "mmpretrain":  # its EMA hook swaps the two when it saves
        raw, averaged = renamed(raw, "mmpretrain", variant), renamed(averaged, "mmpretrain", variant)
        raw = {"steps": torch.tensor(3), **prefixed(raw, "module.")}
        return {"meta": {"epoch": 3}, "state_dict": averaged, "ema_state_dict": raw, "optimizer": {}}
    if project == "MindCV":
        raw, averaged = renamed(raw, "mindcv", variant), renamed(averaged, "mindcv", variant)
        moments = {f"moments.{name}": torch.ones_like(tensor) for name, tensor in raw.items()}
        state = {"global_step": torch.tensor(3), "learning_rate": torch.tensor(0.1), "momentum": torch.tensor(0.9)}
        return {**prefixed(raw, "network._backbone."), **prefixed(averaged, "ema."), **moments, **state}
    assert project == "pth.tar"
    return {"epoch": 3, "arch": "repvgg", "state_dict": prefixed(raw, "module."), "best_acc1": 72.4}


def wrapped_file(folder, project):
    """A file of a project's training; raw weights of seed 0, averaged ones of seed 1."""
    raw, averaged = (official_state(torch_network("plain", seed=seed)) for seed in (0, 1))
    container = PROJECTS[project]
    return write(folder / f"run{SUFFIXES[container]}", wrapped(project, raw, averaged), container)
