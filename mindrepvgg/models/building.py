"""The cells of a network, whoever designed it."""

from __future__ import annotations

from typing import Any

from mindrepvgg.models import repvgg
from mindrepvgg.models.mindcv_networks import build_mindcv
from mindrepvgg.models.mindcv_spec import MindCVNetwork
from mindrepvgg.models.network_spec import NetworkSpec
from mindrepvgg.models.variants import Variant

_BUILDERS: dict[type, Any] = {Variant: repvgg.build, MindCVNetwork: build_mindcv}


def build_network(spec: NetworkSpec, *arguments: Any, **options: Any) -> Any:
    """Build a network: filled with arrays, or freshly initialised.

    Args:
        spec: which network, see `networks.find_network`.
        *arguments, **options: see `repvgg.build`, and `mindcv_networks.build_mindcv` for MindCV's.

    Returns:
        The network, with the attributes variant (the spec), num_classes, in_channels, deploy and metadata.

    Raises:
        UserError, CheckpointError: see there.
    """
    return _BUILDERS[type(spec)](spec, *arguments, **options)
