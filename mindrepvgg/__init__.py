"""RepVGG on MindSpore: train with branches, fold them exactly into 3x3 convolutions, deploy.

`train`, `validate`, `predict`, `convert`, `export` and `quantize` are the verbs of the command `mindrepvgg`. Names are
imported when they are first used, so that `mindrepvgg.list_models()` answers without loading MindSpore.
"""

import importlib
from typing import TYPE_CHECKING

from mindrepvgg.runtime.environment import cap_cpu_isa as _cap_cpu_isa
from mindrepvgg.version import __version__ as __version__

if TYPE_CHECKING:  # for editors and type checkers, which do not run `__getattr__`
    from mindrepvgg.api import convert, export, predict, quantize, train, validate
    from mindrepvgg.deployment.comparison import compare
    from mindrepvgg.deployment.int8.amct_check import check_int8
    from mindrepvgg.deployment.int8.diagnose import diagnose
    from mindrepvgg.models.repvgg import RepVGG, RepVGGPlus
    from mindrepvgg.models.variants import list_models
    from mindrepvgg.reparam.blocks import RepVGGBlock
    from mindrepvgg.reparam.deploy import to_deploy
    from mindrepvgg.reparam.equivalence import verify_equivalence
    from mindrepvgg.weights.checkpoint import load_checkpoint, save_checkpoint
    from mindrepvgg.weights.load import create_model, load_weights
    from mindrepvgg.weights.mindcv_registry import register_in_mindcv

_HOMES = {
    **dict.fromkeys(("train", "validate", "predict", "convert", "export", "quantize"), "api"),
    "compare": "deployment.comparison",
    "check_int8": "deployment.int8.amct_check",
    "diagnose": "deployment.int8.diagnose",
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
    "register_in_mindcv": "weights.mindcv_registry",
}

__all__ = [
    "RepVGG",
    "RepVGGBlock",
    "RepVGGPlus",
    "check_int8",
    "compare",
    "convert",
    "create_model",
    "diagnose",
    "export",
    "list_models",
    "load_checkpoint",
    "load_weights",
    "predict",
    "quantize",
    "register_in_mindcv",
    "save_checkpoint",
    "to_deploy",
    "train",
    "validate",
    "verify_equivalence",
]

# Here, because it must happen before MindSpore is imported by anything of this package.
_cap_cpu_isa()


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__():
    return sorted([*globals(), *_HOMES])
