"""The INT8 file for Ascend beside the one for onnxruntime: a trained CIFAR-10 network, both judged by onnxruntime."""

import tempfile
from pathlib import Path

import cifar10
from trained import trained

from mindrepvgg import api
from mindrepvgg.deployment.comparison import compare
from mindrepvgg.recipe.sources import load_recipe
from mindrepvgg.runtime import device
from mindrepvgg.text import counted, markdown_table


def measure(recipe_path) -> str:
    """Return a markdown table: accuracy of both files, and on how many pictures they name the same class."""
    device.setup("auto", seed=0)
    recipe = load_recipe(str(recipe_path), cifar10.as_recipe())
    checkpoint = trained(recipe)
    with tempfile.TemporaryDirectory() as folder:
        paths = {target: Path(folder, f"{target}.onnx") for target in ("onnxruntime", "ascend")}
        # What INT8 loses is the result here, and no reason to refuse the file; nor shall layers go back to float.
        files = {
            target: api.quantize(
                checkpoint, path, target=target, target_drop=100, keep_float=(), data_dir=recipe.data_dir
            )
            for target, path in paths.items()
        }
        beside = compare(paths["ascend"], paths["onnxruntime"], data_dir=recipe.data_dir, batch_size=500)
    rows = [
        (
            f"`--for {target}`",
            found.facts["weights"],
            found.facts["activations"],
            f"{found.int8.top1:.2f}",
            f"{100 * found.agreement:.2f} %",
        )
        for target, found in files.items()
    ]
    headings = ("INT8 file", "weights", "activations", "top-1 %", "same class as float32")
    return (
        f"{recipe_path.name}, seed {recipe.seed}; float32 {files['ascend'].float32.top1:.2f} %; both files by "
        f"onnxruntime, not run on an NPU; the second {files['ascend'].check.verdict}. Both name the same class on "
        f"**{100 * beside.same_class:.2f} %** of {counted(beside.num_images, 'validation picture')}:\n\n"
        f"{markdown_table(headings, rows)}"
    )
