"""Weight files that this package did not write: MindSpore's and PyTorch's, and such as were crafted."""

import json

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from mindspore.train.checkpoint_pb2 import Checkpoint
from safetensors.numpy import save as safetensors_bytes
from support.weight_files import DESCRIPTION, assert_same, ckpt, make_arrays, refusal, safetensors

from mindrepvgg.weights import containers
from mindrepvgg.weights.containers import read_weights, write_weights

pytestmark = pytest.mark.compat


# bfloat16, and what each is as float32: 1, -0, the least above 0, infinity, a NaN with a payload, about 1/3
BFLOAT16_BITS = np.array([0x3F80, 0x8000, 0x0001, 0x7F80, 0xFFC1, 0x3EAB], np.uint16)
BFLOAT16_VALUES = np.array([0x3F800000, 0x80000000, 0x00010000, 0x7F800000, 0xFFC10000, 0x3EAB0000], "u4").view("f4")


class TestMindSporeReadsOurs:
    ARRAYS = {  # noqa: RUF012
        "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
        "b.gamma": np.full(3, 0.5, np.float16),
        "c": np.array([7], np.int32),
    }

    @pytest.mark.parametrize("size", [16, 10**6], ids=["sliced", "whole"])
    def test_ckpt(self, tmp_path, monkeypatch, size):
        monkeypatch.setattr(containers, "_SLICE_BYTES", size)
        write_weights(tmp_path / "x.ckpt", self.ARRAYS)
        found = ms.load_checkpoint(str(tmp_path / "x.ckpt"))
        found = {name: p.asnumpy() for name, p in found.items() if name != "mindrepvgg.description"}
        assert_same(found, self.ARRAYS)

    def test_safetensors(self, tmp_path):
        write_weights(tmp_path / "x.safetensors", self.ARRAYS, DESCRIPTION)
        found = ms.load_checkpoint(str(tmp_path / "x.safetensors"), format="safetensors")
        assert_same({name: p.asnumpy() for name, p in found.items()}, self.ARRAYS)


class TestWeReadMindSpores:
    @staticmethod
    def save(path, arrays, **options):
        parameters = [{"name": name, "data": Tensor(array)} for name, array in arrays.items()]
        ms.save_checkpoint(parameters, str(path), **options)

    @pytest.mark.parametrize("crc_check", [False, True])
    def test_ckpt(self, tmp_path, crc_check):
        self.save(tmp_path / "x.ckpt", make_arrays(), crc_check=crc_check)
        found = read_weights(tmp_path / "x.ckpt")
        assert_same(found.arrays, make_arrays())
        assert found.description == {}

    def test_scalar(self, tmp_path):
        self.save(tmp_path / "x.ckpt", {"a": np.array(2.5, np.float32)})
        assert_same(read_weights(tmp_path / "x.ckpt").arrays, {"a": np.array(2.5, np.float32)})

    def test_appended_notes(self, tmp_path):
        notes = {"epoch_num": 3, "lr": 0.5, "ok": True}
        self.save(tmp_path / "x.ckpt", make_arrays(), append_dict={**notes, "note": "a b"})
        found = read_weights(tmp_path / "x.ckpt").arrays
        assert {name: found.pop(name).item() for name in notes} == notes
        assert_same(found, make_arrays())  # The text is no weight and is left out.

    def test_damage_is_found_by_the_checksum(self, tmp_path):
        path = tmp_path / "x.ckpt"
        self.save(path, make_arrays(), crc_check=True)
        content = bytearray(path.read_bytes())
        content[content.index(make_arrays()["linear.bias"].tobytes())] ^= 1
        path.write_bytes(content)
        assert "its checksum does not match" in refusal(path)

    def test_safetensors(self, tmp_path):
        self.save(tmp_path / "x.safetensors", make_arrays(), format="safetensors")
        assert_same(read_weights(tmp_path / "x.safetensors").arrays, make_arrays())


class TestCraftedCkpt:
    """Sizes that do not belong to the content: MindSpore's own reader trusts them."""

    @pytest.mark.parametrize(
        ("dims", "content", "reason"),
        [
            ((2,), bytes(12), "w of shape (2,) should have 8 bytes and has 12"),
            ((4,), bytes(12), "w of shape (4,) should have 16 bytes and has 12"),
            ((3,), b"", "w of shape (3,) should have 12 bytes and has 0"),
            ((), bytes(8), "w of shape () should have 4 bytes and has 8"),
            ((0,), bytes(8), "w of shape (0,) should have 0 bytes and has 8"),
            ((-3,), bytes(12), "w of shape (-3,) should have -12 bytes and has 12"),
            ((-1, -3), bytes(12), "w of shape (-1, -3) should have 12 bytes and has 12"),
            ((2**62, 4), bytes(12), "should have 73786976294838206464 bytes and has 12"),
            ((2**32, 2**32), b"", "should have 73786976294838206464 bytes and has 0"),
            ((-(2**63),), bytes(12), "bytes and has 12"),
            ((1,) * 70, bytes(4), "w has the impossible shape (1, 1,"),
            ((0, 2**62, 2**62), b"", "w has the impossible shape (0, 4611686018427387904,"),
            ((2**62,) * 100_000, bytes(4), "w has the impossible shape (4611686018427387904, 461168"),
        ],
    )
    def test_shape(self, tmp_path, dims, content, reason):
        (tmp_path / "x.ckpt").write_bytes(ckpt(("w", "Float32", dims, content)))
        text = refusal(tmp_path / "x.ckpt")
        assert reason in text
        assert text.endswith("get a fresh copy")

    def test_the_crafted_file_is_read_when_it_is_right(self, tmp_path):
        (tmp_path / "x.ckpt").write_bytes(ckpt(("w", "Float32", (3,), bytes(12))))
        assert_same(read_weights(tmp_path / "x.ckpt").arrays, {"w": np.zeros(3, np.float32)})

    @pytest.mark.parametrize("kind", ["", "float32", "Float8", "Int4", "Complex64", "Strings"])
    def test_type(self, tmp_path, kind):
        (tmp_path / "x.ckpt").write_bytes(ckpt(("w", kind, (4,), bytes(16))))
        assert f"w has the unknown type {kind!r}" in refusal(tmp_path / "x.ckpt")

    @pytest.mark.parametrize(("dims", "shape"), [((2, 3), (2, 3)), ((6,), (6,))])
    def test_bfloat16_becomes_float32(self, tmp_path, dims, shape):
        entry = ("w", "BFloat16", dims, BFLOAT16_BITS.tobytes())
        (tmp_path / "x.ckpt").write_bytes(ckpt(entry, ("s", "BFloat16", (0,), BFLOAT16_BITS[:1].tobytes())))
        expected = {"w": BFLOAT16_VALUES.reshape(shape), "s": BFLOAT16_VALUES[0].reshape(())}
        assert_same(read_weights(tmp_path / "x.ckpt").arrays, expected)
        half = ("w", "BFloat16", dims, BFLOAT16_BITS[:3].tobytes())
        (tmp_path / "x.ckpt").write_bytes(ckpt(half))
        assert "should have 12 bytes and has 6" in refusal(tmp_path / "x.ckpt")
        (tmp_path / "x.ckpt").write_bytes(ckpt(half, ("w", "BFloat16", dims, BFLOAT16_BITS[3:].tobytes())))
        assert_same(read_weights(tmp_path / "x.ckpt").arrays, {"w": BFLOAT16_VALUES.reshape(shape)})

    def test_slices_that_do_not_add_up(self, tmp_path):
        part = ("w", "Float32", (4,), bytes(8))
        (tmp_path / "x.ckpt").write_bytes(ckpt(part, part))
        assert read_weights(tmp_path / "x.ckpt").arrays["w"].shape == (4,)
        (tmp_path / "x.ckpt").write_bytes(ckpt(part, part, part))
        assert "w of shape (4,) should have 16 bytes and has 24" in refusal(tmp_path / "x.ckpt")

    def test_hash_table(self, tmp_path):
        message = Checkpoint()
        value = message.value.add()
        value.tag = "embedding"
        value.maptensor.SetInParent()
        (tmp_path / "x.ckpt").write_bytes(message.SerializeToString())
        assert "holds the hash table embedding, which no RepVGG has" in refusal(tmp_path / "x.ckpt")

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            (b"{", "its description cannot be read"),
            (b"\xff\xfe\xfd", "its description cannot be read"),
            (b"[" * 100_000, "its description cannot be read"),
            (b"1" * 10_000, "its description cannot be read"),
            (b"[1]", "its description is not a mapping"),
            (b'{"model": "repvgg_nano"}', "was altered after it was written"),
            (b'{"sha256": null}', "was altered after it was written"),
        ],
        ids=["open", "no text", "deep", "long number", "list", "no digest", "null digest"],
    )
    def test_description(self, tmp_path, text, reason):
        entries = [("mindrepvgg.description", "UInt8", (len(text),), text), ("w", "Float32", (1,), bytes(4))]
        (tmp_path / "x.ckpt").write_bytes(ckpt(*entries))
        assert reason in refusal(tmp_path / "x.ckpt")


class TestWeReadPyTorchsSafetensors:
    """Against PyTorch's own conversion, bit for bit."""

    @pytest.fixture
    def torch(self):
        return pytest.importorskip("torch")

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
    def test_every_float(self, torch, tmp_path, dtype):
        dtype = getattr(torch, dtype)
        raw = torch.randint(0, 256, (60 * dtype.itemsize,), generator=torch.Generator().manual_seed(0))
        every_bit_pattern = raw.to(torch.uint8).view(dtype)
        tensors = {
            "z": every_bit_pattern.reshape(3, 4, 5),
            "a": every_bit_pattern[7].clone(),
            "m": torch.empty(0, 3).to(dtype),
        }
        safetensors_torch = pytest.importorskip("safetensors.torch")
        safetensors_torch.save_file(tensors, tmp_path / "x", metadata={"format": "pt"})
        found = read_weights(tmp_path / "x")
        assert (found.container, found.description) == ("safetensors", {})
        exact = torch.float32 if dtype == torch.bfloat16 else dtype
        assert_same(found.arrays, {name: tensor.to(exact).numpy() for name, tensor in tensors.items()})
        assert all(array.flags.writeable for array in found.arrays.values())

    def test_the_order_is_the_files(self, torch, tmp_path):
        safetensors_torch = pytest.importorskip("safetensors.torch")
        safetensors_torch.save_file({name: torch.ones(2) for name in "zamq"}, tmp_path / "x")
        assert list(read_weights(tmp_path / "x").arrays) == sorted("zamq")  # the library writes them sorted

    @pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
    def test_float8_is_refused_by_name(self, torch, tmp_path, dtype):
        safetensors_torch = pytest.importorskip("safetensors.torch")
        tensors = {"a.weight": torch.ones(2).to(getattr(torch, dtype)), "a.bias": torch.ones(2)}
        safetensors_torch.save_file(tensors, tmp_path / "x")
        assert f"holds a.weight as F8_{dtype[7:11].upper()}" in refusal(tmp_path / "x")


class TestCraftedSafetensors:
    @pytest.mark.parametrize(
        "header",
        [
            {"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 12]}},
            {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 12]}},
            {"w": {"dtype": "F32", "shape": [-3], "data_offsets": [0, 12]}},
            {"w": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 12]}},
            {"w": {"dtype": "F32", "shape": [3], "data_offsets": [0, 2**60]}},
            {"w": {"dtype": "F32", "shape": [3], "data_offsets": [4, 16]}},
            {"w": {"dtype": "F99", "shape": [3], "data_offsets": [0, 12]}},
            {"w": {"dtype": "BF16", "shape": [3], "data_offsets": [0, 12]}},
            {"w": {"dtype": "F32", "shape": [1] * 70 + [3], "data_offsets": [0, 12]}},
            {"w": {"dtype": "F32"}},
            {"w": 3},
            {"__metadata__": 3, "w": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}},
        ],
        ids=lambda header: json.dumps(header)[:60],
    )
    def test_header(self, tmp_path, header):
        (tmp_path / "x.safetensors").write_bytes(safetensors(header, bytes(12)))
        assert "is damaged or no checkpoint" in refusal(tmp_path / "x.safetensors")

    @pytest.mark.parametrize("kind", ["F8_E4M3", "F8_E5M2", "C64"])
    def test_type(self, tmp_path, kind):
        header = {"w": {"dtype": kind, "shape": [16 // (8 if kind == "C64" else 1)], "data_offsets": [0, 16]}}
        (tmp_path / "x.safetensors").write_bytes(safetensors(header, bytes(16)))
        assert f"holds w as {kind}, which is not read; save it as F32, F16 or BF16" in refusal(
            tmp_path / "x.safetensors"
        )

    def test_metadata_may_be_null(self, tmp_path):
        header = {"__metadata__": None, "w": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}
        (tmp_path / "x.safetensors").write_bytes(safetensors(header, bytes(12)))
        assert list(read_weights(tmp_path / "x.safetensors").arrays) == ["w"]

    def test_the_crafted_file_is_read_when_it_is_right(self, tmp_path):
        header = {"w": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}
        (tmp_path / "x.safetensors").write_bytes(safetensors(header, bytes(12)))
        assert_same(read_weights(tmp_path / "x.safetensors").arrays, {"w": np.zeros(3, np.float32)})

    def test_bfloat16_becomes_float32(self, tmp_path):
        header = {"w": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}
        (tmp_path / "x.safetensors").write_bytes(safetensors(header, bytes.fromhex("803fc0bf")))
        assert_same(read_weights(tmp_path / "x.safetensors").arrays, {"w": np.array([1, -1.5], np.float32)})

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("{", "its description cannot be read"),
            ("[1]", "its description is not a mapping"),
            ('{"model": "repvgg_nano"}', "was altered after it was written"),
        ],
    )
    def test_description(self, tmp_path, text, reason):
        content = safetensors_bytes({"w": np.zeros(3)}, metadata={"mindrepvgg.description": text})
        (tmp_path / "x.safetensors").write_bytes(content)
        assert reason in refusal(tmp_path / "x.safetensors")
