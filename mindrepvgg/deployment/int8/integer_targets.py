"""What an INT8 file is for: its form, the engine that judges it, and the commands that come with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindrepvgg.deployment.ascend import amct_commands
from mindrepvgg.deployment.engine_base import ONNXRUNTIME, OPENVINO
from mindrepvgg.deployment.graph import DEFAULT_OPSET
from mindrepvgg.deployment.int8.amct_check import NOT_RUN, AmctCheck, check_model
from mindrepvgg.deployment.int8.ascend_form import OPSET, to_ascend
from mindrepvgg.errors import UserError
from mindrepvgg.runtime.optional import require_optional
from mindrepvgg.text import not_one_of

Commands = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class IntegerTarget:
    """What an INT8 file is for.

    Attributes:
        name: of `INTEGER_TARGETS`.
        engine: what judges the file, and measures its speed.
        activations: their type.
        linear_per_channel: whether the linear layer may have a scale for each output.
        opset: of the file.
        form: the model that onnxruntime takes -> the one for this target; None: the same.
        check: (model, the file's name) -> which of the target's rules it breaks; None: it has none.
        commands: (path, `GraphOptions`, channels, (height, width), chip) -> (what it makes, command) of each.
        not_run: what of the target was not run, in words.
    """

    name: str
    engine: str = ONNXRUNTIME
    activations: str = "uint8"
    linear_per_channel: bool = True
    opset: int = DEFAULT_OPSET
    form: Callable[[Any], Any] | None = None
    check: Callable[[Any, str], AmctCheck] | None = None
    commands: Callable[[Path, Any, int, Any, str], Commands] = lambda *_: ()
    not_run: str | None = None

    def require(self):
        """Raise UserError where the package of the engine is missing."""
        if self.engine == OPENVINO:
            require_optional("openvino", "openvino", "--for openvino")


INTEGER_TARGETS = {
    target.name: target
    for target in (
        IntegerTarget(ONNXRUNTIME),
        # OpenVINO takes the same file: it makes the same integer operators of the same pairs.
        IntegerTarget(OPENVINO, OPENVINO),
        IntegerTarget(
            "ascend",
            activations="int8",
            linear_per_channel=False,
            opset=OPSET,
            form=to_ascend,
            check=check_model,
            commands=amct_commands,
            not_run=NOT_RUN,
        ),
    )
}


def integer_target(name: str) -> IntegerTarget:
    """The target of a name; raise UserError for a name that is none."""
    if name not in INTEGER_TARGETS:
        raise UserError(not_one_of("target", name, INTEGER_TARGETS))
    return INTEGER_TARGETS[name]
