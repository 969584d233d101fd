"""The small CIFAR-10 recipe in full: its trained network as it is, fused, and as an INT8 file."""

import os
import tempfile
from pathlib import Path

import cifar10
from trained import trained

from mindrepvgg import api
from mindrepvgg.recipe.sources import load_recipe
from mindrepvgg.runtime import device
from mindrepvgg.runtime.environment import processor
from mindrepvgg.text import counted, markdown_table


def measure(recipe_path) -> str:
    """Return a markdown table: the accuracy, size and arithmetic of the network's two forms and of its INT8 file."""
    device.setup("auto", seed=0)
    recipe = load_recipe(str(recipe_path), cifar10.as_recipe())
    checkpoint = trained(recipe)
    judged = {"data_dir": recipe.data_dir, "batch_size": 500}
    with tempfile.TemporaryDirectory() as folder:
        deploy = Path(folder, "deploy.ckpt")
        api.convert(checkpoint, deploy)
        forms = [(path, api.validate(path, **judged)) for path in (checkpoint, deploy)]
        # What INT8 loses is the result here, and no reason to refuse the file; nor shall layers go back to float.
        int8 = api.quantize(
            checkpoint, Path(folder, "int8.onnx"), target_drop=100, keep_float=(), data_dir=recipe.data_dir
        )
        rows = [
            (
                f"MindSpore, {found.form} form, float32",
                f"{found.evaluation.top1:.2f}",
                f"{path.stat().st_size / 2**20:.2f}",
            )
            for path, found in forms
        ]
    for name, figures in (("float32", int8.float32), ("INT8", int8.int8)):
        rows.append((f"onnxruntime, {name}", f"{figures.top1:.2f}", f"{figures.bytes / 2**20:.2f}"))
    headings = ("network", "top-1 %", "MiB of its file")
    return (
        f"{recipe_path.name}, seed {recipe.seed}, {counted(recipe.epoch_size, 'epoch')}, judged on "
        f"{counted(int8.images, 'validation picture')}; INT8 and float32 under onnxruntime agree on "
        f"{100 * int8.agreement:.2f} % of the classes; {processor()}, {os.cpu_count()} cores:\n\n"
        f"{markdown_table(headings, rows)}"
    )
