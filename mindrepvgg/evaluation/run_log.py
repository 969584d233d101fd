"""The log of a run, read again: by a run that goes on, and for its curves."""

from __future__ import annotations

import json
import logging

from mindrepvgg.errors import UserError
from mindrepvgg.files import read_regular

log = logging.getLogger(__name__)

# What a run and its curves need of a record, by event.
_NUMBERS = {"train": ("progress", "lr", "loss"), "validate": ("top1", "top5", "loss"), "validate_ema": ("top1",)}


def read_records(path) -> list[dict]:
    """The records of a run's log, in order.

    A last line cut short by a crash is left out, and so is with a notice what is no record.

    Args:
        path: of the run's `log.jsonl`.

    Returns:
        The records, each with `event`, `epoch`, `step` and the numbers of its event.

    Raises:
        UserError: the file cannot be read, or a line is not JSON.
    """
    records, others = [], []
    text = read_regular(path, "the log of a run").decode("utf-8", "replace")
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            if line.endswith("\n"):
                raise UserError(f"line {number} of {path} is not JSON; move the file away to start a new log") from None
            continue
        if _is_record(value):
            records.append(value)
        else:
            others.append(number)
    if others:
        log.warning("%s: lines that are no records are left out (%d, line %d first)", path, len(others), others[0])
    return records


def _is_record(value) -> bool:
    """Whether a value of a log is what `RunLog.write` writes."""
    if not isinstance(value, dict) or not isinstance(value.get("event"), str):
        return False
    needed = {key: value.get(key) for key in _NUMBERS.get(value["event"], ())}
    if value.get("loss", "missing") is None:  # every update was skipped
        needed.pop("loss", None)
    return all(map(_is_number, needed.values())) and all(is_count(value.get(key)) for key in ("epoch", "step"))


def is_count(value) -> bool:
    """Whether a value of a run's files is a count that a run can reach."""
    return type(value) is int and 0 <= value < 2**63


def _is_number(value) -> bool:
    return type(value) is float or is_count(value)
