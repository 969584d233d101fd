"""An INT8 file held against what Ascend's AMCT accepts, as a report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mindrepvgg.deployment.engine_base import LARGEST_FILE
from mindrepvgg.deployment.int8.ascend_rules import RULES, Breach, Rule, breaches, remarks
from mindrepvgg.deployment.int8.qdq_graph import QUANTIZE, QdqGraph
from mindrepvgg.errors import CheckpointError, UserError
from mindrepvgg.files import open_regular
from mindrepvgg.runtime.optional import import_optional
from mindrepvgg.text import counted, first_line, listed, printable

NOT_RUN = "not run on an NPU, nor by AMCT or ATC: the rules are from their pages, CANN 8.0 and 8.5"


@dataclass(frozen=True)
class AmctCheck:
    """What was found.

    Attributes:
        name: of the file.
        layers: how many are integer.
        breaches: what breaks a rule; see `ascend_rules.RULES`.
        remarks: what the pages leave open, or ask for in ATC's command.
    """

    name: str
    layers: int
    breaches: tuple[Breach, ...]
    remarks: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether no rule is broken."""
        return not self.breaches

    @property
    def broken(self) -> dict[Rule, list[Breach]]:
        """The rules that are broken, in the order of RULES, and by what."""
        found = {rule: [breach for breach in self.breaches if breach.rule == rule] for rule in RULES}
        return {rule: by for rule, by in found.items() if by}

    def to_dict(self) -> dict:
        """Plain types, for JSON."""
        broken = [
            {
                "rule": rule.text,
                "cure": rule.cure,
                "nodes": [{"node": breach.node, "found": breach.found} for breach in by],
            }
            for rule, by in self.broken.items()
        ]
        return {
            "file": self.name,
            "passed": self.passed,
            "rules": len(RULES),
            "integer_layers": self.layers,
            "broken": broken,
            "remarks": list(self.remarks),
            "not_run": NOT_RUN,
        }

    def format(self) -> str:
        """Return the report for people."""
        lines = [f"{self.name}: {counted(self.layers, 'layer')} in INT8"]
        for rule, by in self.broken.items():
            lines.append(f"broken: {rule.text}")
            lines.append(f"  where: {listed([f'{printable(breach.node)} ({breach.found})' for breach in by])}")
            lines.append(f"  what to do: {rule.cure}")
        lines += [f"remark: {remark}" for remark in self.remarks]
        return "\n".join([*lines, self.verdict, NOT_RUN])

    @property
    def verdict(self) -> str:
        """One line."""
        did = f"keeps all {len(RULES)}" if self.passed else f"breaks {len(self.broken)} of {len(RULES)}"
        return f"{did} rules of Ascend's AMCT"


def check_model(model, name: str) -> AmctCheck:
    """Hold an `onnx.ModelProto` against the rules; `name` is the file's, for the report."""
    graph = QdqGraph(model)
    layers = sum(map(graph.is_integer_layer, graph.nodes))
    return AmctCheck(name, layers, tuple(breaches(model)), tuple(map(printable_line, remarks(model))))


def printable_line(text: str) -> str:
    """A line that may hold names of a file."""
    return printable(text, 400)


def check_int8(path) -> AmctCheck:
    """Hold an INT8 ONNX file of any program against what Ascend's AMCT accepts.

    Args:
        path: the file.

    Returns:
        Which rules are broken, where and what to do; `passed` tells whether none is.

    Raises:
        CheckpointError: there is no such file, or it is not ONNX.
        UserError: nothing in it is quantised, or onnx is missing.
    """
    onnx = import_optional("onnx", "onnx", "checking an ONNX file")
    path = Path(path)
    open_regular(path, "an ONNX file", CheckpointError, LARGEST_FILE).close()
    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(model)
        found = check_model(model, str(path))
    except Exception as error:  # protobuf's, onnx's and the system's errors have no common base
        raise CheckpointError(f"{path} is not valid ONNX: {first_line(error)}") from None
    kinds = {node.op_type for node in model.graph.node}
    if QUANTIZE not in kinds and not found.breaches:
        raise UserError(f"{path} has no {QUANTIZE}: it is a float file; mindrepvgg quantize --for ascend writes INT8")
    return found
