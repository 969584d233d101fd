"""Checkpoints that know what they are: saved whole or not at all, loaded completely or not at all."""

from __future__ import annotations

import importlib.metadata

import numpy as np
from mindspore import Tensor
from mindspore.nn.utils import no_init_parameters

from mindrepvgg.errors import CheckpointError, UserError
from mindrepvgg.models.repvgg import RepVGG, build
from mindrepvgg.models.shapes import differences
from mindrepvgg.version import __version__
from mindrepvgg.weights.containers import read_weights, write_weights

TRAIN, DEPLOY = "train", "deploy"

# Arrays of an unfinished run stand beside the network's under this prefix.
STATE_PREFIX = "training_state."


def form_of(net: RepVGG) -> str:
    """'train' or 'deploy'."""
    return DEPLOY if net.deploy else TRAIN


def save_checkpoint(net, path, training_state=None, **metadata):
    """Save a network with what is needed to build, feed and judge it; `.ckpt` or `.safetensors` by the suffix.

    net: a RepVGG or RepVGGPlus. training_state: arrays by name that `--resume` needs (the optimizer's).
    metadata: JSON-able facts to keep, over those the network carries already (`net.metadata`): by convention
    `image_size` (height, width), `preprocessing`, `class_names`, `dataset`, `recipe`, `epoch`, `step`, `metrics`.
    The file appears only when it is complete; a file that was there survives any failure.
    Raises CheckpointError when the suffix is another, ValueError when the network has two parameters of one name.
    """
    arrays = network_arrays(net)
    for name, array in (training_state or {}).items():
        arrays[STATE_PREFIX + name] = np.asarray(array)
    write_weights(path, arrays, {**net.metadata, **metadata, **_describe(net)})


def load_checkpoint(path, net=None, form=None) -> RepVGG:
    """Load a checkpoint of this package: the network, built and filled; what is known of it is in `net.metadata`.

    net: fill this network instead of building one; it must be of the same kind, form and class count.
    form: 'train' or 'deploy' to refuse the other one. The network is set to inference.
    Raises CheckpointError, which lists every parameter that is missing, unexpected or of another shape.
    """
    return load_checkpoint_and_state(path, net, form)[0]


def load_checkpoint_and_state(path, net=None, form=None) -> tuple[RepVGG, dict[str, np.ndarray]]:
    """`load_checkpoint`, and the arrays that were saved as `training_state` (none in a finished checkpoint)."""
    found = read_weights(path)
    description = _check_description(path, found.description)
    check_form(path, description["form"], form)
    if net is None:
        net = _build(path, description)
    else:
        _check_same_network(path, description, net)
    state = {k.removeprefix(STATE_PREFIX): v for k, v in found.arrays.items() if k.startswith(STATE_PREFIX)}
    weights = {k: v for k, v in found.arrays.items() if not k.startswith(STATE_PREFIX)}
    load_arrays(net, weights, path)
    net.metadata = description
    return net.set_train(False), state


def load_arrays(net, arrays, source, copy=True):
    """Fill a network's parameters from named arrays, all or none.

    copy: with False, an array of the parameter's type becomes the parameter's memory; nobody else may use it then.
    Raises CheckpointError, which lists every name that is missing, unexpected or of another shape, with `source`.
    """
    parameters = {parameter.name: parameter for parameter in net.get_parameters()}
    found = differences({name: tuple(parameter.shape) for name, parameter in parameters.items()}, arrays)
    if found.count:
        raise CheckpointError(f"{source} does not fit the network: {found.text(shown=None)}")
    for name, parameter in parameters.items():
        array = arrays[name]
        shared = not copy and array.flags.writeable and array.flags.c_contiguous and array.dtype == np.float32
        tensor = Tensor.from_numpy(array) if shared else Tensor(array)
        parameter.set_data(tensor if tensor.dtype == parameter.dtype else tensor.astype(parameter.dtype))


def network_arrays(net) -> dict[str, np.ndarray]:
    """A network's parameters by name. Raises ValueError for two of one name, which would become one in a file."""
    arrays = {}
    for parameter in net.get_parameters():
        if parameter.name in arrays:
            raise ValueError(f"two parameters of the network are called {parameter.name}; a file can keep only one")
        arrays[parameter.name] = parameter.asnumpy()
    return arrays


def _describe(net) -> dict:
    """What is read off the network itself, and the versions that wrote it."""
    return {
        "model": net.variant.name,
        "model_args": net.variant.to_dict() if net.variant.name == "repvgg" else {},
        "num_classes": net.num_classes,
        "in_channels": net.in_channels,
        "form": form_of(net),
        "versions": {
            "mindrepvgg": __version__,
            **{package: importlib.metadata.version(package) for package in ("mindspore", "numpy")},
        },
    }


def _check_description(path, description):
    """The description, with the facts that building the network needs."""
    if not description:
        raise CheckpointError(
            f"{path} does not say which network it is: it was not written by mindrepvgg.save_checkpoint"
        )
    missing = [key for key in ("model", "num_classes", "in_channels", "form") if key not in description]
    if missing:
        raise CheckpointError(f"{path} does not tell its {', '.join(missing)}: it was written by another program")
    if description["form"] not in (TRAIN, DEPLOY):
        raise CheckpointError(f"{path} calls its form {description['form']!r}, which is neither {TRAIN} nor {DEPLOY}")
    return description


def check_form(path, actual, expected):
    """Refuse one form where the other is needed, in words."""
    if expected in (None, actual):
        return
    if expected == TRAIN:
        raise CheckpointError(
            f"{path} is in deploy form: its branches are fused and cannot be recovered; give the train-form checkpoint "
            f"it was converted from"
        )
    raise CheckpointError(f"{path} is in train form, a deploy checkpoint is needed; make one with convert.py")


def _build(path, description):
    try:
        with no_init_parameters():  # every one of them is about to be filled
            return build(
                description["model"],
                num_classes=description["num_classes"],
                in_channels=description["in_channels"],
                deploy=description["form"] == DEPLOY,
                **description.get("model_args", {}),
            )
    except (UserError, TypeError, MemoryError) as error:  # TypeError: model_args is no mapping of create_model's shape
        raise CheckpointError(f"{path} describes a network that cannot be built: {error}") from None


def _check_same_network(path, description, net):
    """Refuse a checkpoint of another network than the given one, naming what differs."""
    own = _describe(net)
    check_form(path, description["form"], own["form"])
    for key in ("model", "num_classes", "in_channels", "model_args"):
        if description.get(key, own[key]) != own[key]:
            raise CheckpointError(
                f"{path} holds {key} {description[key]}, the network it is loaded into has {key} {own[key]}"
            )
