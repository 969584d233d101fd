"""Convert one file with MindSpore Lite, run it, and keep what it computed: for Lite's own Python, which is 3.7.

python3.7 lite_program.py FILE IMAGES.npy OUTPUTS.npy [NCHW|NHWC]

FILE is .onnx or .mindir; IMAGES.npy holds batches, (B, ...). The last argument is the converter's input format; without
it the converter decides. Where something is refused, the last line of stderr says what, and the exit status is 1.
"""

import sys
from pathlib import Path

import mindspore_lite as lite
import numpy as np


def main(source, images, outputs, layout=None):
    """Convert, run each batch, write the outputs (B, ...)."""
    try:
        np.save(outputs, _computed(_converted(source, Path(outputs).with_suffix(""), layout), np.load(images)))
    except RuntimeError as error:
        sys.exit(str(error).splitlines()[0])


def _converted(source, destination, layout):
    converter = lite.Converter()
    converter.save_type = lite.ModelType.MINDIR_LITE
    if layout:
        converter.input_format = getattr(lite.Format, layout)
    kind = lite.FmkType.ONNX if source.endswith(".onnx") else lite.FmkType.MINDIR
    try:
        converter.convert(fmk_type=kind, model_file=source, output_file=str(destination))
    except RuntimeError:  # it tells no reason
        raise RuntimeError("refused by the converter") from None
    return f"{destination}.ms"


def _computed(path, batches):
    context = lite.Context()
    context.target = ["cpu"]
    model = lite.Model()
    try:
        model.build_from_file(path, lite.ModelType.MINDIR_LITE, context)
    except RuntimeError:
        raise RuntimeError("converted, and not loaded") from None
    inputs = model.get_inputs()
    if -1 in inputs[0].shape:
        model.resize(inputs, [list(batches.shape[1:])])
    found = []
    for batch in batches:
        inputs[0].set_data_from_numpy(batch)
        try:
            outputs = model.predict(inputs)
        except RuntimeError:
            raise RuntimeError("loaded, and does not compute") from None
        found.append(outputs[0].get_data_to_numpy().copy())  # the next call overwrites it
    return np.stack(found)


if __name__ == "__main__":
    main(*sys.argv[1:])
