"""The network of a name.

A network is told by its name and its `model_args`, in a recipe, on the command line and in a checkpoint. `find_network`
makes a `NetworkSpec` of the two, and `building.build_network` makes the cells. Loads no MindSpore, unless the network
is MindCV's.
"""

from __future__ import annotations

from mindrepvgg.models import mindcv_spec, variants
from mindrepvgg.models.network_spec import MINDCV, NetworkSpec, is_mindcvs


def spelled(name: str) -> str:
    """A network's name as recipes and checkpoints have it; whether there is such a network is not asked."""
    if is_mindcvs(name):
        return f"{MINDCV}{name.strip()[len(MINDCV) :]}"
    return variants.normalise_name(name)


def find_network(name: str, **model_args) -> NetworkSpec:
    """The network of a name.

    Args:
        name: one of the family, see `variants.find`; or one of the installed MindCV, 'mindcv/resnet18'.
        **model_args: see `variants.find` and `mindcv_spec.find_in_mindcv`.

    Raises:
        UserError: there is none, and the message has the nearest names; or the arguments do not fit.
    """
    if is_mindcvs(name):
        return mindcv_spec.find_in_mindcv(spelled(name).removeprefix(MINDCV), **model_args)
    return variants.find(name, **model_args)
