"""RepVGG on MindSpore: train with branches, fold them exactly into 3x3 convolutions, deploy.

Names are imported when first used, so that `mindrepvgg.list_models()` answers without loading MindSpore.
"""

import importlib

from mindrepvgg.runtime.environment import cap_cpu_isa as _cap_cpu_isa
from mindrepvgg.version import __version__ as __version__

_HOMES = {
    "list_models": "models.variants",
    "create_model": "weights.load",
    "load_weights": "weights.load",
    "RepVGG": "models.repvgg",
    "RepVGGPlus": "models.repvgg",
    "RepVGGBlock": "reparam.blocks",
    "to_deploy": "reparam.deploy",
    "verify_equivalence": "reparam.equivalence",
    "save_checkpoint": "weights.checkpoint",
    "load_checkpoint": "weights.checkpoint",
}

__all__ = sorted(_HOMES)

# Here, because it must happen before MindSpore is imported by anything of this package.
_cap_cpu_isa()


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__():
    return sorted([*globals(), *_HOMES])
