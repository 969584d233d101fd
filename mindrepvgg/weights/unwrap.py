"""What checkpoints put around the weights: other entries, EMA weights, prefixes, an optimizer's state."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mindrepvgg.errors import CheckpointError
from mindrepvgg.text import listed, printable
from mindrepvgg.weights.pickles import Opaque

# Keys under which training scripts keep a state dict; official main.py: model, ema; timm: state_dict, state_dict_ema.
_RAW = ("state_dict", "model", "model_state_dict")
_AVERAGED = ("state_dict_ema", "model_ema", "ema", "ema_state_dict")

# Segments that wrappers add to names, at the front or further in, once or repeatedly: DataParallel and DDP,
# torch.compile, Lightning, MindSpore's training cells and mixed precision, MindCV's gradient accumulation.
# No dialect uses them.
_WRAPPING = {"module", "_orig_mod", "model", "network", "_backbone", "optimizer"}


@dataclass(frozen=True)
class Unwrapped:
    """The weights found in a file's content, as flat name -> array without prefixes.

    Attributes:
        weights: as trained; None when the file has none.
        averaged: their exponential moving average (EMA); None when the file has none.
        wrapper: the keys they stood under ('state_dict, state_dict_ema'), '' for a bare state dict.
        prefix: what was taken off the names ('module.'), '' for nothing.
        ignored: what else the file holds.
    """

    weights: dict[str, np.ndarray] | None
    averaged: dict[str, np.ndarray] | None
    wrapper: str
    prefix: str
    ignored: tuple[str, ...]


def unwrap(content) -> Unwrapped:
    """Find the weights in a file's nested content, as `read_torch_file` or `read_weights` gives it.

    Raises:
        CheckpointError: there are none, two candidates, a pickled network in their place, or two names that become one
            without their prefixes.
    """
    if type(content) is Opaque:
        raise _pickled(content)
    if not isinstance(content, dict):
        raise CheckpointError(f"holds a {type(content).__name__}, expected weights by name")
    raw_key, averaged_key = (_only_state(content, keys) for keys in (_RAW, _AVERAGED))
    # mmengine's EMA hook swaps the two when it saves, so that `state_dict` is what one evaluates.
    if "meta" in content and (raw_key, averaged_key) == ("state_dict", "ema_state_dict"):
        raw_key, averaged_key = averaged_key, raw_key
    keys = [key for key in (raw_key, averaged_key) if key is not None]
    states: dict = {key: _Flat(content[key]) for key in keys} or {None: _Flat(content)}
    weights = states[raw_key].weights if raw_key in states else None
    averaged = states[raw_key].averaged if averaged_key is None else states[averaged_key].weights
    if not weights and not averaged:
        raise _nothing(content)
    return Unwrapped(
        weights=weights or None,
        averaged=averaged or None,
        wrapper=", ".join(keys),
        prefix=", ".join(dict.fromkeys(state.prefix for state in states.values() if state.prefix)),
        ignored=(
            *(printable(key) for key in content if keys and key not in keys),
            *(f"{key}: {name}" if key else name for key, state in states.items() for name in state.ignored),
        ),
    )


def _nothing(content):
    for key in (*_RAW, *_AVERAGED):
        if type(content.get(key)) is Opaque:
            return _pickled(content[key])
    return CheckpointError(f"holds no weights by name; its entries: {listed([printable(key) for key in content])}")


def _pickled(network: Opaque):
    return CheckpointError(
        f"holds a pickled network ({printable(network.name)}), which needs its program to be read; "
        f"load it there and save its state_dict() instead"
    )


def _is_state(value) -> bool:
    return isinstance(value, dict) and any(
        isinstance(name, str) and isinstance(array, np.ndarray) and array.ndim for name, array in value.items()
    )


def _only_state(content, keys) -> str | None:
    found = [key for key in keys if _is_state(content.get(key))]
    if len(found) > 1:
        raise CheckpointError(f"holds several state dicts ({', '.join(found)}); save the one that is meant alone")
    return found[0] if found else None


class _Flat:
    """One state dict, sorted into weights, EMA weights and the rest, without prefixes."""

    def __init__(self, state):
        self.weights, self.averaged, self.ignored = {}, {}, []
        removed, origins, under = {}, {}, {}
        for name, array in state.items():
            segments = name.split(".") if isinstance(name, str) and isinstance(array, np.ndarray) else []
            kept = ".".join(segment for segment in segments if segment not in _WRAPPING)
            if "." not in kept:  # global_step, learning_rate, scale_sense...: every parameter of a network has a dot
                self.ignored.append(printable(name))
                continue
            if kept in origins:
                raise CheckpointError(
                    f"holds both {printable(origins[kept])} and {printable(name)}, which are one parameter"
                )
            origins[kept] = name
            removed.update(dict.fromkeys(f"{segment}." for segment in segments if segment in _WRAPPING))
            first, _, rest = kept.partition(".")
            under.setdefault(first, []).append(rest)
        # An optimizer's: moments.stage0..., adam_m.stage0... Not stage1_aux, where linear.weight alone has a namesake.
        slots = {
            first: len(rests)
            for first, rests in under.items()
            if first != "ema" and (first == "training_state" or all(rest in origins for rest in rests))
        }
        for name, original in origins.items():
            first, _, rest = name.partition(".")
            if first == "ema":  # MindCV's moving average of every parameter
                self.averaged[rest] = state[original]
            elif first not in slots:
                self.weights[name] = state[original]
        self.ignored += [f"{printable(slot)}.* ({count})" for slot, count in slots.items()]
        self.prefix = "".join(removed)
