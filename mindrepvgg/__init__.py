"""RepVGG on MindSpore: train with branches, fold them exactly into 3x3 convolutions, deploy.

Names are imported when first used, so that `mindrepvgg.list_models()` answers without loading MindSpore.
"""

import importlib

from .environment import cap_cpu_isa as _cap_cpu_isa
from .version import __version__ as __version__

_HOMES = {
    "list_models": "variants",
    "create_model": "pretrained",
    "load_weights": "pretrained",
    "RepVGG": "model",
    "RepVGGPlus": "model",
    "RepVGGBlock": "block",
    "to_deploy": "deploy",
    "verify_equivalence": "deploy",
    "save_checkpoint": "checkpoint",
    "load_checkpoint": "checkpoint",
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
