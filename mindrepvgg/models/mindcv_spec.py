"""Networks of the installed MindCV, told by a name and a few arguments. MindCV is imported when one is asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mindrepvgg.errors import UserError
from mindrepvgg.models import variants
from mindrepvgg.models.network_spec import BLOCK_KEYS, MINDCV, NetworkSpec
from mindrepvgg.runtime.optional import import_optional
from mindrepvgg.text import nearest, patterns, printable, quoted

# Arguments of MindCV's networks that a recipe may give. Others, as `checkpoint_path`, would let a file from strangers
# read and download.
RATES = ("drop_rate", "drop_path_rate")


@dataclass(frozen=True)
class MindCVNetwork(NetworkSpec):
    """A network of MindCV.

    Attributes:
        mindcv_name: as `mindcv.create_model` knows it.
        block: the block that takes the place of convolutions, one of `named_blocks.BLOCKS`; None: none does.
        block_where: of which convolutions, patterns of their paths; None: those whose kernel is larger than 1x1.
        drop_rate, drop_path_rate: MindCV's arguments of these names; None: not given.
    """

    mindcv_name: str
    block: str | None = None
    block_where: tuple[str, ...] | None = None
    drop_rate: float | None = None
    drop_path_rate: float | None = None

    is_family = False
    fixed_keys = (
        ("freeze_stages", 0, "it counts the stages of this package's own networks"),
        ("layer_decay", 1.0, "it counts the blocks of this package's own networks"),
        ("sync_bn", False, "MindCV's networks make their BN themselves"),
        ("recompute", False, "it recomputes the blocks of this package's own networks"),
        ("grouped", "native", "MindCV's networks make their convolutions themselves"),
        ("quantization", None, "it fine-tunes this package's own networks"),
        ("custom_l2", False, "it is for networks all of whose convolutions are this package's blocks"),
    )

    @property
    def name(self) -> str:  # type: ignore[override]
        """As a recipe and a checkpoint have it."""
        return f"{MINDCV}{self.mindcv_name}"

    @property
    def size_args(self) -> dict:
        """See `NetworkSpec.size_args`: the arguments that MindCV's function is given."""
        return {key: getattr(self, key) for key in RATES if getattr(self, key) is not None}

    def with_block(self, block: str | None, where=None) -> MindCVNetwork:
        """See `NetworkSpec.with_block`."""
        if block is None:
            if where is not None:
                raise UserError(f"block_where (={quoted(where)}) needs block, which says what is put there")
            return self
        from mindrepvgg.reparam.named_blocks import block_class  # loads MindSpore, as MindCV does

        block_class(block)
        return replace(self, block=block, block_where=_patterns(where))

    def family_layout(self, purpose: str, remedy: str = "") -> variants.Variant:
        """See `NetworkSpec.family_layout`; raises UserError."""
        end = f"; {remedy}" if remedy else ""
        raise UserError(f"{purpose} is for this package's own networks, and {self.name} is MindCV's{end}")

    def deploy_layout(self, purpose: str, remedy: str = "") -> variants.Variant:
        """See `NetworkSpec.deploy_layout`: MindCV's RepVGGs, when fused, are laid out and named as ours."""
        if self.block is None and self.mindcv_name in variants.published_models():
            return variants.find(self.mindcv_name)
        return self.family_layout(purpose, remedy)


def find_in_mindcv(name: str, block=None, block_where=None, **rates) -> MindCVNetwork:
    """The network that MindCV calls so.

    Args:
        name: one of `mindcv.list_models()`.
        block, block_where, **rates: see `MindCVNetwork`; block_where may be one pattern.

    Raises:
        UserError: MindCV is not installed or has no such network, and the message has the nearest name; or an argument
            cannot be used.
    """
    known = import_optional("mindcv", None, f"the network {MINDCV}{printable(name)}").list_models()
    if name not in known:
        near = nearest(name, known)
        hint = f"did you mean {MINDCV}{near}?" if near else "python -c 'import mindcv; print(mindcv.list_models())'"
        raise UserError(f"model (={quoted(f'{MINDCV}{name}')}) is no network of the installed MindCV; {hint}")
    unknown = sorted(set(rates) - set(RATES))
    if unknown:
        taken = ", ".join((*BLOCK_KEYS, *RATES))
        raise UserError(f"{MINDCV}{name} takes no {printable(unknown[0])}; a network of MindCV takes {taken}")
    for key, value in rates.items():
        if value is not None and not (type(value) in (int, float) and 0 <= value < 1):
            raise UserError(f"{key} (={quoted(value)}) must be a number of at least 0 and below 1")
    return MindCVNetwork(name, **rates).with_block(block, block_where)


def _patterns(where) -> tuple[str, ...] | None:
    if where is None:
        return None
    chosen = patterns(where)
    if chosen is None:
        raise UserError(f"block_where (={quoted(where)}) must be a pattern of convolutions' paths, or a list of them")
    return chosen
