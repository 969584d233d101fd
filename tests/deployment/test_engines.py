"""Every kind of exported file by every engine that runs it: right numbers, several threads, traps that are closed."""

import hashlib
import json
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

import mindspore as ms
import numpy as np
import onnx
import pytest
import torch
from support import SMALL, context_mode, images, randomise_bn
from support.loaders import RGB, preprocessing
from support.torch_networks import in_float64

from mindrepvgg import create_model, to_deploy
from mindrepvgg.deployment import openvino_engine
from mindrepvgg.deployment.engine import (
    RUNS,
    MindIREngine,
    OnnxEngine,
    OpenVinoEngine,
    engine_of,
    network_facts,
    open_engine,
)
from mindrepvgg.deployment.graph import GraphOptions, build_onnx
from mindrepvgg.deployment.mindir import write_mindir
from mindrepvgg.errors import CheckpointError, UserError
from mindrepvgg.files import write_json
from mindrepvgg.models.parameters import network_arrays
from mindrepvgg.runtime.environment import without_isa_cap

openvino = pytest.importorskip("openvino")

BOTH = [OnnxEngine, OpenVinoEngine]


@pytest.fixture(autouse=True, scope="module")
def _pynative():
    with context_mode("pynative"):
        yield


@pytest.fixture(scope="module")
def net():
    ms.set_seed(0)
    return randomise_bn(create_model("repvgg", 10, 3, **SMALL["d2se"])).set_train(False)


@pytest.fixture(scope="module")
def truth(net):
    """Images -> logits in float64, computed by PyTorch with the branches."""
    theirs = in_float64(net)

    def run(x):
        with torch.no_grad():
            return theirs(torch.from_numpy(np.ascontiguousarray(x, np.float64))).numpy()

    return run


@pytest.fixture(scope="module")
def content(net):
    """A function (**options): an ONNX model in memory."""
    deployed = to_deploy(net)
    facts = network_facts(net)

    def build(**options):
        return build_onnx(
            deployed.variant, network_arrays(deployed), GraphOptions(**options), facts
        ).SerializeToString()

    return build


@pytest.fixture(scope="module")
def files(net, content, tmp_path_factory):
    """A file of each kind, by suffix."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "net.onnx").write_bytes(content())
    openvino.save_model(openvino.Core().read_model(content()), folder / "net.xml", compress_to_fp16=False)
    write_mindir(to_deploy(net), folder / "net.mindir", GraphOptions(), ".mindir")
    describe(folder / "net.mindir", network_facts(net))
    return {suffix: folder / f"net{suffix}" for suffix in RUNS}


def describe(path, facts):
    write_json(f"{path}.json", {**facts, "file_sha256": hashlib.sha256(path.read_bytes()).hexdigest()})


def far(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize(("suffix", "engine"), [(suffix, name) for suffix, names in RUNS.items() for name in names])
def test_every_engine_computes_the_network(files, truth, net, suffix, engine):
    x = images(3, 3, 32, 32)
    found = open_engine(files[suffix], engine)
    assert found.kind == engine
    assert found.description.num_classes == 10
    assert found.metadata == network_facts(net) | found.metadata
    assert (found.batch_size, found.image_size, found.num_classes, found.in_channels) == (None, None, 10, 3)
    assert far(found(x), truth(x)) < 1e-5
    assert far(found(x), truth(x[::-1])) > 1e-2, "other images are told apart"


def test_a_network_in_memory_under_openvino(net, truth):
    x = images(2, 3, 45, 33)
    assert far(engine_of(net, 1, "openvino")(x), truth(x)) < 1e-5


@pytest.mark.parametrize("kind", BOTH)
def test_a_fixed_batch_and_preprocessing(content, truth, kind):
    prepared = preprocessing(**RGB)
    engine = kind(content(batch_size=4, image_size=(32, 32), preprocess=prepared))
    pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    mean, std = np.asarray(prepared.mean), np.asarray(prepared.std)
    x = ((pixels / 255 - mean) / std).transpose(0, 3, 1, 2)
    assert engine.preprocesses
    assert engine(pixels).shape == (6, 10)
    assert far(engine(pixels), truth(x)) < 1e-5


@pytest.mark.parametrize("suffix", RUNS)
def test_threads_call_one_engine(files, suffix):
    engine = open_engine(files[suffix])
    batches = [images(count, 3, 32, 32, seed=count) for count in (1, 2, 3, 4)] * 3
    expected = [engine(batch) for batch in batches[:4]] * 3
    with ThreadPoolExecutor(4) as pool:
        for found, wanted in zip(pool.map(engine, batches), expected, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------------------------------- OpenVINO's traps


def capable():
    with without_isa_cap():  # OpenVINO reads the cap for good when it is first asked
        return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def test_openvino_computes_in_float32_unless_told_otherwise(content, truth):
    """On a CPU with bfloat16 it would not; then the same model without our hint is the negative control."""
    engine, x = OpenVinoEngine(content()), images(4, 3, 32, 32)
    assert engine._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"
    assert far(engine(x), truth(x)) < 1e-5
    core = openvino.Core()
    plain = core.compile_model(core.read_model(content()), "CPU")
    if plain.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "bf16":
        assert far(plain(x)[0], truth(x)) > 1e-4


@pytest.mark.skipif(not capable(), reason="this CPU has no bfloat16")
def test_bfloat16_is_asked_for_by_name(content, truth):
    engine, x = OpenVinoEngine(content(), precision="bfloat16"), images(4, 3, 32, 32)
    assert engine._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "bf16"
    assert 1e-4 < far(engine(x), truth(x)) < 1e-1


def test_a_cpu_without_bfloat16_is_told(content, monkeypatch):
    core = openvino.Core()

    class Old:
        """Of a CPU of years ago."""

        def get_property(self, *_):
            return ["FP32", "INT8"]

        def __getattr__(self, name):
            return getattr(core, name)

    monkeypatch.setattr(openvino_engine, "_core", Old)
    assert OpenVinoEngine(content())(images(1, 3, 32, 32)).shape == (1, 10)
    with pytest.raises(UserError, match="this CPU has no bfloat16, says OpenVINO; leave out the precision"):
        OpenVinoEngine(content(), precision="bfloat16")


@pytest.mark.skipif(not capable(), reason="this CPU has one precision")
def test_openvino_that_does_what_it_wants_is_refused(content, monkeypatch):
    core = openvino.Core()

    class Deaf:
        """Computes in its own precision whatever it is asked for."""

        def compile_model(self, model, device, options):
            return core.compile_model(model, device)

        def __getattr__(self, name):
            return getattr(core, name)

    monkeypatch.setattr(openvino_engine, "_core", Deaf)
    with pytest.raises(UserError, match="OpenVINO was asked for float32 and computes the model in bf16; give another"):
        OpenVinoEngine(content())


def test_the_cap_for_mindspore_is_taken_away_and_put_back(content, monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    core, seen = openvino.Core(), []

    class Watched:
        """Notes what the environment says while a model is compiled."""

        def compile_model(self, *arguments):
            seen.append(os.environ.get("ONEDNN_MAX_CPU_ISA"))
            return core.compile_model(*arguments)

        def __getattr__(self, name):
            return getattr(core, name)

    monkeypatch.setattr(openvino_engine, "_core", Watched)
    OpenVinoEngine(content())
    assert seen == [None]
    assert os.environ["ONEDNN_MAX_CPU_ISA"] == "AVX2"


def test_streams_and_threads_are_openvinos(content):
    engine = OpenVinoEngine(content(), num_threads=2, num_streams=2)
    assert engine._compiled.get_property("INFERENCE_NUM_THREADS") == 2
    assert engine._compiled.get_property("NUM_STREAMS") == 2


def test_an_ir_tells_what_its_onnx_told(content, tmp_path):
    """Names in any writing too; weights that OpenVINO's tools round to float16 are said to be so."""
    model = onnx.ModelProto.FromString(content())
    names = ['<&">', "Großer Hund", "犬", " a ", *"efghij"]
    onnx.helper.set_model_props(
        model, {entry.key: entry.value for entry in model.metadata_props} | {"class_names": json.dumps(names)}
    )
    read = openvino.Core().read_model(model.SerializeToString())
    for options, precision in (({"compress_to_fp16": False}, None), ({}, "float16")):
        openvino.save_model(read, tmp_path / "net.xml", **options)
        engine = open_engine(tmp_path / "net.xml")
        assert engine.description.class_names == names
        assert engine.metadata.get("precision") == precision


# ------------------------------------------------------------------------------------- damaged, stale and foreign files


def test_an_ir_without_its_weights_or_with_others(files, tmp_path):
    path = shutil.copy(files[".xml"], tmp_path / "net.xml")
    with pytest.raises(CheckpointError, match=r"net\.bin does not exist, expected the weights of .*net\.xml"):
        open_engine(path)
    (tmp_path / "net.bin").write_bytes(b"too few")
    with pytest.raises(CheckpointError, match=r"net\.xml cannot be run by OpenVINO \S+: Incorrect weights in bin"):
        open_engine(path)
    path.write_text("<net>")
    with pytest.raises(CheckpointError, match="cannot be run by OpenVINO"):
        open_engine(path)


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("damage", [b"", b"junk", "cut"])
def test_what_is_no_model(content, kind, damage):
    with pytest.raises(CheckpointError, match="the model cannot be run by") as caught:
        kind(content()[:-100] if damage == "cut" else damage)
    assert "\n" not in str(caught.value)


def test_a_number_that_openvino_would_count_down_from(content):
    model = onnx.ModelProto.FromString(content())
    model.opset_import[0].version = 2**31
    with pytest.raises(CheckpointError, match=r"(it says that its opset is 2147483648|it is not valid ONNX: )"):
        OpenVinoEngine(model.SerializeToString())


@pytest.mark.parametrize("kind", BOTH)
def test_metadata_that_are_no_text(content, kind):
    damaged = content().replace(b"num_classes", b"num_\xff\xfe\xfdsses")
    with pytest.raises(CheckpointError, match=r"the model is damaged: its (names or )?metadata are not UTF-8; get"):
        kind(damaged)


@pytest.mark.parametrize("kind", BOTH)
def test_a_description_of_another_network(content, kind):
    model = onnx.ModelProto.FromString(content())
    facts = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, {**facts, "num_classes": "9"})
    with pytest.raises(CheckpointError, match="its metadata say num_classes 9, its graph has 10; get a fresh copy"):
        kind(model.SerializeToString())


def test_a_stale_description_beside_a_mindir(files, tmp_path):
    path = shutil.copy(files[".mindir"], tmp_path / "net.mindir")
    facts = json.loads(files[".mindir"].with_suffix(".mindir.json").read_text())
    assert open_engine(path).metadata == {}
    write_json(f"{path}.json", {**facts, "file_sha256": "0" * 64})
    with pytest.raises(CheckpointError, match=r"net\.mindir\.json describes another file than .*net\.mindir"):
        open_engine(path)
    write_json(f"{path}.json", {**facts, "in_channels": 1})
    with pytest.raises(CheckpointError, match="its metadata say in_channels 1, its graph has 3"):
        open_engine(path)
    for text in ("[1]", "{", "[" * 10**5, "{}"):
        (tmp_path / "net.mindir.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"net\.mindir\.json is not what mindrepvgg export wrote"):
            open_engine(path)


def test_what_is_no_mindir(files, tmp_path):
    good = files[".mindir"].read_bytes()
    no_text = good.replace(b"Conv2D", b"Con\xff2D")
    assert no_text != good
    for damage in (b"", b"no graph", good[: len(good) // 2], no_text, files[".onnx"].read_bytes()):
        (tmp_path / "net.mindir").write_bytes(damage)
        with pytest.raises(CheckpointError) as caught:
            MindIREngine(tmp_path / "net.mindir")
        assert "\n" not in str(caught.value)


# ----------------------------------------------------------------------------------------------------------- wrong use


@pytest.mark.parametrize(
    ("suffix", "options", "problem"),
    [
        (
            ".onnx",
            {"engine": "mindspore"},
            r"--engine mindspore does not run .*net\.onnx: \.onnx is for onnx",
        ),
        (".mindir", {"engine": "openvino"}, r"--engine openvino does not run .*net\.mindir: \.mindir is for mindspore"),
        (".onnx", {"precision": "bfloat16"}, "--precision bfloat16 is for --engine openvino; the engine here is onnx"),
        (".xml", {"precision": "int4"}, r"precision \(='int4'\) of the engine openvino must be float32 or bfloat16"),
        (".mindir", {"num_threads": 2}, "--num_threads is for the engines onnxruntime and openvino"),
        (".onnx", {"num_threads": 0}, r"num_threads \(=0\) must be at least 1"),
        (".onnx", {"engine": "tensorrt"}, "--engine tensorrt does not run"),
    ],
)
def test_options_that_do_not_go_together(files, suffix, options, problem):
    with pytest.raises(UserError, match=problem):
        open_engine(files[suffix], **options)


def test_without_openvino_it_says_what_to_install(net, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    missing = r"the engine openvino needs the package openvino: pip install openvino 'numpy<2' \(extra: openvino\)"
    with pytest.raises(UserError, match=missing):
        open_engine("any.xml")
    with pytest.raises(UserError, match=missing):
        engine_of(net, engine="openvino")
