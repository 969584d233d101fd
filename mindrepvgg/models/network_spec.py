"""What the layers above ask of a network, whoever designed it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from mindrepvgg.models.feature_layout import FeatureLayout
from mindrepvgg.text import plain

MINDCV = "mindcv/"

# What gives a network blocks of another kind, see `NetworkSpec.with_block`.
BLOCK_KEYS = ("block", "block_where")


class NetworkSpec:
    """A network before it is built: its name, its arguments, and what is possible with it.

    Attributes:
        name: as a recipe and a checkpoint have it.
        block, block_where: see `with_block`.
        aux_heads: whether training adds classifiers that the deploy form has not, see `variants.Variant`.
        features: what the network gives instead of classes, see `variants.Variant`.
        is_family: whether it is laid out as this package's own networks are. Only then its parameters can be told
            without building it, its arrays tell which network they are of, and other projects have names for them.
        fixed_keys: keys of a recipe that can have one value alone with it: the key, the value, and the reason.
    """

    name: str
    block: str | None = None
    block_where: tuple[str, ...] | None = None
    aux_heads: bool = False
    features: FeatureLayout | None = None
    is_family: ClassVar[bool] = True
    fixed_keys: ClassVar[tuple[tuple[str, Any, str], ...]] = ()

    @property
    def model_args(self) -> dict:
        """What the name does not tell, in plain types: `find_network(name, **model_args)` makes the same network."""
        return {**self.size_args, **self.block_args}

    @property
    def block_args(self) -> dict:
        """Those of `model_args` that are blocks."""
        return {key: plain(getattr(self, key)) for key in BLOCK_KEYS if getattr(self, key) is not None}

    @property
    def size_args(self) -> dict:
        """Those of `model_args` that are no blocks, which are the recipe's key `model_args`."""
        raise NotImplementedError

    @property
    def label(self) -> str:
        """The name, and what blocks it has where they are not its own."""
        where = "" if self.block_where is None else f" at {', '.join(self.block_where)}"
        return f"{self.name} with {self.block} blocks{where}" if self.block else self.name

    def to_dict(self) -> dict:
        """What is told of the network besides its name; of one of the family also what the name says."""
        return self.model_args

    @property
    def file_name(self) -> str:
        """What files of the network begin with."""
        return file_name_of(self.name)

    def with_block(self, block: str | None, where=None) -> NetworkSpec:
        """The network with blocks of another kind.

        Args:
            block: the kind; None: the network itself.
            where: a pattern of blocks' names, or of MindCV's networks of convolutions' paths; or several.

        Raises:
            UserError: there is no such block, or it cannot be here.
        """
        raise NotImplementedError

    def family_layout(self, purpose: str, remedy: str = "") -> Any:
        """The network's layout, a `variants.Variant`, for what works with no other network.

        Args:
            purpose: what works so; it starts the message.
            remedy: what to do with another network; it ends the message.

        Raises:
            UserError: the network has none.
        """
        raise NotImplementedError

    def with_features(self, layout: Mapping | None) -> NetworkSpec:
        """The network that gives maps instead of classes.

        Args:
            layout: the arguments of `FeatureLayout`; None: the network itself.

        Raises:
            UserError: an argument cannot be used, or the network gives no maps.
        """
        if layout is None:
            return self
        return dataclasses.replace(self.family_layout("features_only"), features=FeatureLayout(**layout))

    def deploy_layout(self, purpose: str, remedy: str = "") -> Any:
        """The layout that the network has in deploy form, under the family's names; otherwise as `family_layout`."""
        return self.family_layout(purpose, remedy)


def file_name_of(name: str) -> str:
    """What files of the network called so begin with."""
    return name.replace("/", "_")


def is_mindcvs(name) -> bool:
    """Whether a network's name says that it is MindCV's."""
    return str(name).strip().lower().startswith(MINDCV)
