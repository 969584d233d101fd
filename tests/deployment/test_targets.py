"""`--for`: the options, files and commands of each target. Nothing of it ran on an NPU, a GPU or a server."""

import ast
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from support import images, relative_difference
from support.exports import CLASSES, FACTS, SIZE, pixels
from support.onnx_files import session

import mindrepvgg
from mindrepvgg.cli import export as verb
from mindrepvgg.deployment.targets import TARGETS

pytestmark = pytest.mark.usefixtures("few_photos")


def test_the_command_knows_the_targets():
    source = ast.parse(Path(verb.__file__).read_text("utf-8"))
    found = [ast.literal_eval(node.value) for node in ast.walk(source)
             if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "targets"]  # fmt: skip
    assert found == [tuple(TARGETS)]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("out.onnx", "--for", "ascend", "--batch_size", "dynamic"), "--for ascend compiles one batch and image size"),
        (("out.onnx", "--for", "ascend", "--preprocess"), "ATC documents uint8 inputs for AIPP alone"),
        (("out.mindir", "--for", "ascend"), "must end in one of .onnx"),
        (("out.onnx", "--for", "lite", "--precision", "float16"), "crashes with a float16 file of any batch"),
        (("out.onnx", "--for", "tensorrt", "--precision", "float16"), "leave out --precision float16"),
        (("out.onnx", "--for", "tensorrt", "--image_size", "dynamic"), "needs an image size"),
        (("out.onnx", "--for", "triton"), "must be a folder"),
        (("models", "--for", "triton", "--batch_size", "4"), "Triton makes the batches itself"),
        (("out.onnx", "--for", "phone"), "invalid choice"),
    ],
)
def test_what_a_target_cannot_have_is_refused(arguments, error, call, checkpoints, tmp_path):
    name, *options = arguments
    status, out, err = call("export", checkpoints["deploy"], tmp_path / name, *options)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert error in err
    assert list(tmp_path.iterdir()) == []


def test_lite(call, checkpoints, tmp_path):
    line = ("export", checkpoints["deploy"], tmp_path / "out.onnx", "--for", "lite")
    status, out, _ = call(*line)
    assert status == 0
    assert f"converter_lite --fmk=ONNX --modelFile={tmp_path}/out.onnx --inputDataFormat=NCHW" in out
    status, out, _ = call(*line, "--precision", "float16", "--batch_size", 2)
    assert status == 0
    assert "--inputShape=images:2,3,32,40" in out
    status, out, _ = call(*line, "--preprocess")
    assert (status, "--inputDataFormat" in out) == (0, False)


# ------------------------------------------------------------------------------------------------------------- Ascend


def test_ascend_with_aipp(call, checkpoints, truth, tmp_path):
    """The batch is 16; AIPP's formula of the file's numbers is the normalisation; sh reads the script."""
    status, out, err = call(
        "export", checkpoints["deploy"], tmp_path / "out.onnx", "--for", "ascend", "--soc_version", "Ascend910B3"
    )
    assert (status, err) == (0, "")
    assert "not run on an NPU:" in out
    assert f"sh {tmp_path}/out.deploy.sh Ascend910B3" in out
    assert session(tmp_path / "out.onnx")(images(16, 3, *SIZE)).shape == (16, 10)

    text = (tmp_path / "out.aipp.cfg").read_text("utf-8")
    told = dict(re.findall(r"^    (\w+): (\S+)$", text, re.MULTILINE))
    assert (told["aipp_mode"], told["input_format"], told["rbuv_swap_switch"]) == ("static", "RGB888_U8", "false")
    assert (int(told["src_image_size_h"]), int(told["src_image_size_w"])) == SIZE
    bytes_in = pixels(2, *SIZE, 3)
    least, scale = (
        np.array([float(told[f"{key}_{index}"]) for index in range(3)]) for key in ("min_chn", "var_reci_chn")
    )
    assert [told[f"mean_chn_{index}"] for index in range(3)] == ["0"] * 3
    mean, std = (np.array(FACTS["preprocessing"][key]) for key in ("mean", "std"))
    assert np.abs((bytes_in - least) * scale - (bytes_in / 255 - mean) / std).max() < 1e-5

    script = tmp_path / "out.deploy.sh"
    subprocess.run(["bash", "-n", script], check=True)
    lines = script.read_text("utf-8").splitlines()
    assert "NOT RUN ON AN NPU" in "\n".join(line for line in lines[:8] if line.startswith("#"))
    assert "soc_version=${1:-Ascend910B3}" in lines
    assert lines[-2] == (
        "atc --model=out.onnx --framework=5 --output=out --input_format=NCHW --input_shape=images:16,3,32,40 "
        '--precision_mode_v2=origin --insert_op_conf=out.aipp.cfg --soc_version="$soc_version"'
    )
    assert lines[-1] == "python3 -m ais_bench --model out.om --batchsize 16"


def test_the_script_calls_both_tools(checkpoints, tmp_path):
    """With stand-ins for the two, from another folder, for another chip: they get these arguments, each as one."""
    folder = tmp_path / "a b"
    mindrepvgg.export(
        checkpoints["deploy"], folder / "out.onnx", target="ascend", batch_size=2, fold_normalisation=True
    )
    assert sorted(path.name for path in folder.iterdir()) == ["out.deploy.sh", "out.onnx"]
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("atc", "python3"):
        (tools / name).write_text(f'#!/bin/sh\nprintf "%s|" {name} "$@"; echo\n')
        (tools / name).chmod(0o755)
    done = subprocess.run(
        ["sh", folder / "out.deploy.sh", "Ascend310B4"],
        env={"PATH": f"{tools}:/usr/bin:/bin"}, cwd="/", capture_output=True, text=True, check=True,
    )  # fmt: skip
    atc, bench = done.stdout.splitlines()
    assert atc.startswith("atc|--model=out.onnx|--framework=5|")
    assert atc.endswith("|--soc_version=Ascend310B4|")
    assert "insert_op_conf" not in atc
    assert bench == "python3|-m|ais_bench|--model|out.om|--batchsize|2|"


def test_aipp_without_a_mean_is_refused(call, checkpoints, tmp_path):
    line = ("export", checkpoints["silent"], tmp_path / "out.onnx", "--image_size", "32", "--for", "ascend")
    status, _, err = call(*line)
    assert (status, "does not tell mean and std, which AIPP needs" in err) == (2, True)
    assert list(tmp_path.iterdir()) == []
    assert call(*line, "--mean", ".1", "--std", ".3")[0] == 0
    assert "input_format: YUV400_U8" in (tmp_path / "out.aipp.cfg").read_text("utf-8")


# ----------------------------------------------------------------------------------------------------------- TensorRT


def test_tensorrt(call, checkpoints, tmp_path):
    """The layers that stay in float32 are nodes of the file, and all those of the first stage."""
    status, out, err = call("export", checkpoints["plain"], tmp_path / "out.onnx", "--for", "tensorrt")
    assert (status, err) == (0, "")
    assert "not run on a GPU:" in out
    exact, half = (shlex.split(line) for line in out.splitlines() if line.startswith("trtexec"))
    assert exact == [
        "trtexec", f"--onnx={tmp_path}/out.onnx", "--minShapes=images:1x3x32x40", "--optShapes=images:16x3x32x40",
        "--maxShapes=images:32x3x32x40", f"--saveEngine={tmp_path}/out.plan",
    ]  # fmt: skip
    own = [f"--saveEngine={tmp_path}/out.fp16.plan", "--fp16", "--precisionConstraints=obey"]
    assert half[:-2] == [*exact[:-1], *own]
    nodes = {node.name for node in onnx.load(tmp_path / "out.onnx").graph.node}
    first = {name for name in nodes if name.startswith("stage1.")}
    for argument, name in zip(half[-2:], ("--layerPrecisions=", "--layerOutputTypes="), strict=True):
        assert argument.startswith(name)
        layers = [layer.split(":") for layer in argument.removeprefix(name).split(",")]
        assert {layer for layer, _ in layers} == first
        assert {precision for _, precision in layers} == {"fp32"}
    status, out, _ = call("export", checkpoints["plain"], tmp_path / "out.onnx", "--for", "tensorrt", "--batch_size", 1)
    assert (status, "Shapes" in out) == (0, False)


# ------------------------------------------------------------------------------------------------------------- Triton


def model_config():
    """The part of Triton's ModelConfig that is used, with its published field numbers."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="config.proto", package="part", syntax="proto3")
    types = file.enum_type.add(name="DataType")
    for name, number in (("TYPE_INVALID", 0), ("TYPE_UINT8", 2), ("TYPE_FP16", 10), ("TYPE_FP32", 11)):
        types.value.add(name=name, number=number)
    text, whole = (kinds.TYPE_STRING, None), (kinds.TYPE_INT32, None)
    messages = {
        "Input": {
            "name": (1, text), "data_type": (2, (kinds.TYPE_ENUM, "DataType")), "dims": (4, (kinds.TYPE_INT64, None)),
        },
        "Output": {
            "name": (1, text), "data_type": (2, (kinds.TYPE_ENUM, "DataType")), "dims": (3, (kinds.TYPE_INT64, None)),
            "label_filename": (4, text),
        },
        "Batching": {"max_queue_delay_microseconds": (2, (kinds.TYPE_UINT64, None))},
        "Config": {
            "name": (1, text), "platform": (2, text), "max_batch_size": (4, whole),
            "input": (5, (kinds.TYPE_MESSAGE, "Input")), "output": (6, (kinds.TYPE_MESSAGE, "Output")),
            "dynamic_batching": (11, (kinds.TYPE_MESSAGE, "Batching")),
        },
    }  # fmt: skip
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for field, (number, (kind, of)) in fields.items():
            repeated = field in ("dims", "input", "output")
            label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
            made = message.field.add(name=field, number=number, type=kind, label=label)
            if of:
                made.type_name = f".part.{of}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("part.Config"))


def parsers():
    """The part above, and the whole one of the client's package where that is installed."""
    yield model_config()
    try:
        from tritonclient.grpc import model_config_pb2
    except ImportError:
        return
    yield model_config_pb2.ModelConfig


@pytest.mark.parametrize("options", [(), ("--preprocess", "--softmax"), ("--image_size", "dynamic")])
def test_triton(options, call, checkpoints, truth, tmp_path):
    status, out, err = call("export", checkpoints["deploy"], tmp_path / "models", "--for", "triton", *options)
    assert (status, err) == (0, "")
    assert "not run on a server:" in out
    assert f"tritonserver --model-repository={tmp_path}/models" in out
    folder = tmp_path / "models" / "deploy"
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert found == ["1/model.onnx", "config.pbtxt", "labels.txt"]
    assert (folder / "labels.txt").read_text("utf-8").splitlines() == CLASSES

    graph = onnx.load(folder / "1" / "model.onnx").graph
    for parser in parsers():
        config = text_format.Parse((folder / "config.pbtxt").read_text("utf-8"), parser())
        assert (config.name, config.platform, config.max_batch_size) == ("deploy", "onnxruntime_onnx", 32)
        assert config.dynamic_batching.max_queue_delay_microseconds == 3000
        assert config.output[0].label_filename == "labels.txt"
        for told, real in ((config.input, graph.input), (config.output, graph.output)):
            assert [one.name for one in told] == [one.name for one in real]
            for one, other in zip(told, real, strict=True):
                tensor = other.type.tensor_type
                first, *dims = [dim.dim_value or -1 for dim in tensor.shape.dim]
                assert first == -1, "any batch"
                assert list(one.dims) == dims
                assert one.data_type == {1: 11, 2: 2}[tensor.elem_type]
    if not options:
        x = images(3, 3, *SIZE)
        assert relative_difference(session(folder / "1" / "model.onnx")(x), truth["deploy"](x)) < 1e-5


def test_a_config_with_another_field_would_be_noticed():
    with pytest.raises(text_format.ParseError):
        text_format.Parse('name: "a"\nmax_batch: 4', model_config()())
