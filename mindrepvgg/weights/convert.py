"""Checkpoints from one project, form and container to another; what is fused is proven before it is written."""

from __future__ import annotations

import gc
import io
from dataclasses import dataclass
from pathlib import Path

from mindrepvgg.errors import CheckpointError
from mindrepvgg.files import atomic_write, write_json
from mindrepvgg.models.parameters import network_arrays
from mindrepvgg.models.variants import DEPLOY, TRAIN
from mindrepvgg.reparam.deploy import to_deploy
from mindrepvgg.reparam.equivalence import EquivalenceReport, verify_equivalence
from mindrepvgg.reparam.tracing import example_inputs
from mindrepvgg.runtime.optional import import_optional
from mindrepvgg.text import counted
from mindrepvgg.weights.checkpoint import save_checkpoint
from mindrepvgg.weights.containers import SUFFIXES, write_weights
from mindrepvgg.weights.dialects import OURS, find_dialect
from mindrepvgg.weights.load import ImportedWeights, import_weights, local_file
from mindrepvgg.weights.rename import from_ours

TIMM = "timm"
_TORCH_SUFFIXES = (".pth", ".pt")
_TOLD_BESIDE = ("class_names", "image_size", "preprocessing", "epoch")


@dataclass(frozen=True)
class Conversion:
    """What a conversion read and wrote; `report` is the proof where branches were fused, else None."""

    source: dict  # as `describe` has it; the weights themselves are not kept
    destination: Path
    dialect: str
    form: str
    report: EquivalenceReport | None

    def to_dict(self) -> dict:
        """Plain types, for JSON."""
        return {
            "source": self.source,
            "destination": {"path": str(self.destination), "dialect": self.dialect, "form": self.form},
            "equivalence": self.report and self.report.to_dict(),
        }


def convert_checkpoint(
    source,
    destination,
    dialect=OURS.name,
    form=None,
    weights="raw",
    num_classes=None,
    rtol=1e-4,
    allow_nonfinite=False,
) -> Conversion:
    """Convert a checkpoint of any project into another's names, form and container.

    Args:
        source: the file to read.
        destination: the file to write. The suffix chooses the container: `.ckpt` and `.safetensors`, and with PyTorch
            installed `.pth`.
        dialect: whose names `destination` gets, see `dialects.DIALECTS`.
        form: 'deploy' fuses the branches of a train-form source, in float64, and compares both forms on seeded noise
            first; 'train' keeps the branches. None: 'deploy', but of a train-form source 'train' for timm, whose plain
            network has branches.
        weights: 'raw' or 'ema'.
        num_classes: refuse a source of another class count.
        rtol: what the two forms' outputs may differ by, over the largest.
        allow_nonfinite: take NaN and infinite values.

    A file with another project's names holds nothing but arrays; what else is known goes into a .json beside it.

    Raises:
        EquivalenceError: the forms differ by more than rounding; nothing is written.
        CheckpointError: the source cannot be used, or the destination cannot hold it.
    """
    destination = Path(destination)
    _check_destination(Path(source), destination, dialect)
    source, weights = local_file(source, weights)
    imported = import_weights(source, weights, allow_nonfinite)
    if dialect != OURS.name:
        imported.recognised.variant.family_layout(f"writing the names of {find_dialect(dialect).project}")
    if num_classes not in (None, imported.recognised.num_classes):
        classes = counted(imported.recognised.num_classes, "class")
        raise CheckpointError(f"{source} is for {classes}, expected {num_classes}")
    if form is None:
        form = TRAIN if dialect == TIMM and imported.recognised.form == TRAIN else DEPLOY
    net = imported.network(TRAIN if form == TRAIN else None)
    facts = describe(imported)
    del imported  # large networks: what is done with is let go, so that two copies at most are in memory
    report = None
    if form == DEPLOY and not net.deploy:
        net, report = _fuse(net, rtol)
        gc.collect()  # the train form's cells refer to one another, and would stay while the file is written
    _write(net, destination, dialect, source, report)
    return Conversion(facts, destination, dialect, form, report)


def _fuse(net, rtol):
    """The deploy form, and the proof of it."""
    deployed = to_deploy(net)
    return deployed, verify_equivalence(net, deployed, example_inputs(net), rtol)


def describe(imported: ImportedWeights) -> dict:
    """What was found in a file, in plain types: the content of `--inspect`."""
    found = imported.recognised
    # The names alone do not tell whose a deploy form is: the authors' are the same.
    dialect = OURS if imported.description else find_dialect(found.dialect)
    facts = {
        "path": str(imported.path),
        "container": imported.container,
        "dialect": dialect.project,
        "model": found.variant.name,
        "form": found.form,
        "num_classes": found.num_classes,
        "in_channels": found.in_channels,
        "tensors": len(found.arrays),
        "parameters": int(sum(a.size for name, a in found.arrays.items() if ".moving_" not in name)),
        "raw_weights": imported.has_raw,
        "averaged_weights": imported.has_ema,
        "wrapper": imported.wrapper,
        "prefix": imported.prefix,
        "ignored": list(imported.ignored),
    }
    if found.variant.model_args:
        facts["model_args"] = found.variant.model_args
    if found.variant.features:
        facts["features"] = found.variant.features.to_dict()
    if found.variant.aux_heads and found.form == TRAIN:
        facts["auxiliary_heads"] = found.has_aux
    told = imported.description.to_dict() if imported.description else {}
    return {
        **facts,
        **{key: told[key] for key in ("epoch", "step", "dataset", "image_size", "versions") if key in told},
    }


def write_report(conversion: Conversion, path):
    """Save what was found, done and measured as JSON."""
    write_json(path, conversion.to_dict())


def _check_destination(source, destination, dialect):
    """Refuse, before anything is read, what could not be written at the end."""
    find_dialect(dialect)
    if destination.exists() and source.exists() and destination.samefile(source):
        raise CheckpointError(f"{destination} is the source itself; give the result another name")
    if destination.suffix in _TORCH_SUFFIXES:
        if dialect == OURS.name:
            raise CheckpointError(
                f"{destination}: a PyTorch file needs a PyTorch project's names; add --dialect official"
            )
        _import_torch(destination)
    elif destination.suffix not in SUFFIXES:
        known = ", ".join((*SUFFIXES, *_TORCH_SUFFIXES))
        raise CheckpointError(f"{destination} must end in one of {known}: the suffix says how it is written")


def _write(net, destination, dialect, source, report):
    if dialect == OURS.name:
        facts = {"converted_from": source.name}
        if report:
            facts["equivalence"] = {key: getattr(report, key) for key in ("max_abs", "max_rel", "rtol", "num_inputs")}
        save_checkpoint(net, destination, **facts)
        return
    if net.variant.features:
        raise CheckpointError(f"{source} holds a features network, which only {OURS.name}'s own names are for")
    arrays = from_ours(network_arrays(net), dialect, net.variant)
    if destination.suffix in _TORCH_SUFFIXES:
        torch = _import_torch(destination)
        content = io.BytesIO()
        torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, content)
        with atomic_write(destination) as stream:
            stream.write(content.getbuffer())
    else:
        write_weights(destination, arrays)
    told = {key: net.metadata[key] for key in _TOLD_BESIDE if key in net.metadata}
    facts = {"model": net.variant.name, "model_args": net.variant.to_dict(), "form": DEPLOY if net.deploy else TRAIN}
    sizes = {"num_classes": net.num_classes, "in_channels": net.in_channels}
    write_json(description_beside(destination), {**facts, **sizes, **told, "converted_from": source.name})


def description_beside(destination) -> Path:
    """The .json file beside a file of another project's names, which tells what its arrays do not."""
    return Path(f"{destination}.json")


def _import_torch(destination):
    return import_optional(
        "torch", "torch", f"{destination}: writing {destination.suffix}", "writing .safetensors does not"
    )
