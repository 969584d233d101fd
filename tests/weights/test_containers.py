"""Weight files: both containers, MindSpore's own files, and files that are damaged in every way we could think of."""

import json
import os
import struct

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from mindspore.train.checkpoint_pb2 import Checkpoint
from safetensors.numpy import save as safetensors_bytes

from mindrepvgg.errors import CheckpointError
from mindrepvgg.weights import containers
from mindrepvgg.weights.containers import read_weights, write_weights

pytestmark = pytest.mark.compat

SUFFIXES = (".ckpt", ".safetensors")
DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64"),
)
DESCRIPTION = {
    "model": "repvgg_nano",
    "class_names": ["Größe", "猫", "\U0001f600"],
    "epoch": 3,
    "none": None,
    "x": [1.5],
}


def make_arrays():
    """Named arrays like a small network's; the names are neither sorted nor of one length."""
    rng = np.random.default_rng(0)
    return {
        "stage1.0.rbr_dense.conv.weight": rng.normal(size=(4, 3, 3, 3)).astype(np.float32),
        "stage0.rbr_identity.gamma": rng.normal(size=4).astype(np.float32),
        "linear.bias": rng.normal(size=10).astype(np.float16),
        "global_step": np.array([7], np.int32),
    }


def assert_same(found, expected):
    """The same names, types, shapes and bits."""
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        assert found[name].shape == array.shape, name
        assert found[name].tobytes() == array.tobytes(), name


def refusal(path):
    """The text of the CheckpointError that reading gives; any other outcome fails the test."""
    with pytest.raises(CheckpointError) as caught:
        read_weights(path)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert str(path) in text
    return text


@pytest.fixture(params=SUFFIXES)
def suffix(request):
    return request.param


class TestRoundTrip:
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_every_type(self, tmp_path, suffix, dtype):
        array = np.arange(-3, 9).astype(dtype).reshape(3, 4)
        write_weights(tmp_path / f"x{suffix}", {"a": array})
        assert_same(read_weights(tmp_path / f"x{suffix}").arrays, {"a": array})

    def test_special_floats_keep_their_bits(self, tmp_path, suffix):
        bits = np.array([0x7FC00001, 0xFFC00000, 0x7F800000, 0x80000000, 0x00000001], np.uint32)
        write_weights(tmp_path / f"x{suffix}", {"a": bits.view(np.float32)})
        np.testing.assert_array_equal(read_weights(tmp_path / f"x{suffix}").arrays["a"].view(np.uint32), bits)

    @pytest.mark.parametrize("shape", [(), (1,), (1, 1), (0,), (0, 3), (3, 0, 2), (2, 3, 4, 5, 6)])
    @pytest.mark.parametrize("dtype", ["float32", "uint8", "int64"])
    def test_every_shape(self, tmp_path, suffix, shape, dtype):
        array = np.ones(shape, dtype)
        write_weights(tmp_path / f"x{suffix}", {"a": array, "b": np.zeros(2)})
        assert_same(read_weights(tmp_path / f"x{suffix}").arrays, {"a": array, "b": np.zeros(2)})

    def test_arrays_that_are_not_contiguous(self, tmp_path, suffix):
        array = np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1)[::2]
        write_weights(tmp_path / f"x{suffix}", {"a": array})
        assert_same(read_weights(tmp_path / f"x{suffix}").arrays, {"a": array})

    def test_description(self, tmp_path, suffix):
        write_weights(tmp_path / f"x{suffix}", make_arrays(), DESCRIPTION)
        found = read_weights(tmp_path / f"x{suffix}")
        assert_same(found.arrays, make_arrays())
        assert found.description == DESCRIPTION

    @pytest.mark.parametrize(
        ("given", "read"),
        [
            ({2: "b", 10: "c", 1: "a"}, {"2": "b", "10": "c", "1": "a"}),
            ((1, (2, 3)), [1, [2, 3]]),
            (float("inf"), float("inf")),
            ("folder \udce9t\udce9", "folder \udce9t\udce9"),  # a file name that is not UTF-8, as Python shows it
        ],
    )
    def test_what_json_changes_is_no_alteration(self, tmp_path, suffix, given, read):
        write_weights(tmp_path / f"x{suffix}", make_arrays(), {"key": given})
        assert read_weights(tmp_path / f"x{suffix}").description == {"key": read}

    def test_no_description(self, tmp_path, suffix):
        write_weights(tmp_path / f"x{suffix}", make_arrays())
        assert read_weights(tmp_path / f"x{suffix}").description == {}

    def test_ckpt_keeps_the_order(self, tmp_path):
        write_weights(tmp_path / "x.ckpt", make_arrays())
        assert list(read_weights(tmp_path / "x.ckpt").arrays) == list(make_arrays())

    def test_the_content_tells_the_container(self, tmp_path, suffix):
        write_weights(tmp_path / f"x{suffix}", make_arrays(), DESCRIPTION)
        other = (tmp_path / f"x{suffix}").rename(tmp_path / "without_suffix")
        assert_same(read_weights(other).arrays, make_arrays())

    def test_writing_a_ckpt_twice_gives_the_same_bytes(self, tmp_path):
        for name in "ab":
            write_weights(tmp_path / f"{name}.ckpt", make_arrays(), DESCRIPTION)
        assert (tmp_path / "a.ckpt").read_bytes() == (tmp_path / "b.ckpt").read_bytes()

    @pytest.mark.parametrize("size", [8, 64, 100, 4 * 108, 10**6])
    def test_large_tensors_are_sliced(self, tmp_path, monkeypatch, size):
        monkeypatch.setattr(containers, "_SLICE_BYTES", size)
        arrays = {**make_arrays(), "empty": np.zeros((0, 2), np.float32), "scalar": np.float64(2.5)}
        write_weights(tmp_path / "x.ckpt", arrays, DESCRIPTION)
        found = read_weights(tmp_path / "x.ckpt")
        assert_same(found.arrays, arrays)
        assert found.description == DESCRIPTION
        message = Checkpoint()
        message.ParseFromString((tmp_path / "x.ckpt").read_bytes())
        assert max(len(value.tensor.tensor_content) for value in message.value) <= size
        largest = "stage1.0.rbr_dense.conv.weight"
        assert sum(value.tag == largest for value in message.value) == -(-4 * 108 // size)

    @pytest.mark.parametrize("name", ["x", "x.pth", "x.CKPT", "x.ckpt.bak"])
    def test_another_suffix_is_refused(self, tmp_path, name):
        with pytest.raises(CheckpointError, match=r"must end in \.ckpt or \.safetensors, which says how it is written"):
            write_weights(tmp_path / name, make_arrays())
        assert list(tmp_path.iterdir()) == []

    def test_a_description_that_json_cannot_hold_writes_nothing(self, tmp_path, suffix):
        path = tmp_path / f"x{suffix}"
        write_weights(path, make_arrays())
        before = path.read_bytes()
        with pytest.raises(TypeError, match="not JSON serializable"):
            write_weights(path, make_arrays(), {"key": np.zeros(2)})
        assert path.read_bytes() == before


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


class TestNoCheckpoint:
    def test_missing(self, tmp_path):
        assert "x.ckpt does not exist, expected a checkpoint" in refusal(tmp_path / "x.ckpt")

    def test_folder(self, tmp_path):
        assert refusal(tmp_path).endswith("is a folder, expected a checkpoint")

    def test_below_a_file(self, tmp_path):
        (tmp_path / "file").touch()
        assert refusal(tmp_path / "file" / "x.ckpt").endswith("cannot be read: Not a directory")

    def test_empty(self, tmp_path, suffix):
        (tmp_path / f"x{suffix}").touch()
        assert "is empty: it was never written to the end; get a fresh copy" in refusal(tmp_path / f"x{suffix}")

    @pytest.mark.parametrize(
        "content",
        [
            b"model: repvgg_nano\nepoch_size: 3\n",
            b"\n",
            b"{}",
            b"\x89PNG\r\n\x1a\n" + bytes(100),
            bytes(64),
            b"PK\x03\x04",
        ],
        ids=["yaml", "newline", "json", "png", "zeros", "zip"],
    )
    def test_another_kind_of_file(self, tmp_path, suffix, content):
        (tmp_path / f"x{suffix}").write_bytes(content)
        assert "is damaged or no checkpoint" in refusal(tmp_path / f"x{suffix}")

    def test_a_pipe_and_a_device_are_not_waited_for(self, tmp_path):
        os.mkfifo(tmp_path / "x.ckpt")
        assert refusal(tmp_path / "x.ckpt").endswith("is a pipe, expected a checkpoint")
        assert refusal("/dev/zero").endswith("is a device, expected a checkpoint")

    def test_more_than_any_checkpoint_has(self, tmp_path):
        with open(tmp_path / "x.ckpt", "wb") as file:
            file.truncate(1 << 40)
        assert "more than the 8192 MiB that a checkpoint may have" in refusal(tmp_path / "x.ckpt")

    def test_a_checkpoint_of_nothing(self, tmp_path, suffix):
        write_weights(tmp_path / f"x{suffix}", {}, DESCRIPTION)
        assert refusal(tmp_path / f"x{suffix}").endswith("holds no weights")


@pytest.mark.parametrize(
    ("content", "suffix", "what"),
    [
        (
            b"\x08\x08\x12\x07pytorch",
            ".ckpt",
            "is an ONNX file, for inference, and no checkpoint: onnxrun",
        ),
        (b"\x08\x07\x3a\x05graph", ".onnx", "is an ONNX file"),
        (b"not a message", ".onnx", "is an ONNX file"),
        (b"\x0a\x031.1\x12\x09MindSpore*\x06", ".ckpt", "is a MindIR file, for inference, and no checkpoint: "),
        (b"not a message", ".mindir", "is a MindIR file"),
        (b"IMOD\0\0\0\0", ".ckpt", "is a model for Ascend (OM), for inference"),
        (b"not a message", ".air", "is a model for Ascend (AIR), for inference"),
    ],
)
def test_a_file_for_inference_is_called_what_it_is(tmp_path, content, suffix, what):
    """By its content, or where that says nothing by its name."""
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    text = refusal(path)
    assert f"x{suffix} {what}" in text
    assert text.endswith("; give the checkpoint that it was exported from")
    path.write_bytes(b"")
    assert "is empty" in refusal(path)


class TestDamage:
    """Whatever happens to a file this package wrote, reading says so, or the numbers are the ones written."""

    @staticmethod
    def read_or_refuse(path, content):
        """The arrays and description read, or None when the file was refused with a CheckpointError of one line."""
        path.write_bytes(content)
        try:
            return read_weights(path)
        except CheckpointError:
            refusal(path)
            return None

    @pytest.fixture
    def content(self, tmp_path, suffix):
        write_weights(tmp_path / f"x{suffix}", make_arrays(), DESCRIPTION)
        return (tmp_path / f"x{suffix}").read_bytes()

    def test_cut_short(self, tmp_path, suffix, content):
        path = tmp_path / f"x{suffix}"
        assert self.read_or_refuse(path, content) is not None
        for length in np.linspace(0, len(content) - 1, 50).astype(int):
            path.write_bytes(content[:length])
            refusal(path)

    def test_cut_short_between_two_tensors(self, tmp_path):
        """A .ckpt is a row of messages: cut between two it is still well-formed, and only the digest tells."""
        path = tmp_path / "x.ckpt"
        write_weights(path, make_arrays(), DESCRIPTION)
        content = path.read_bytes()
        message = Checkpoint()
        message.ParseFromString(content)
        last = Checkpoint()
        last.value.add().CopyFrom(message.value[-1])
        path.write_bytes(content.removesuffix(last.SerializeToString()))
        assert "its content does not match its SHA-256" in refusal(path)

    def test_something_behind(self, tmp_path, suffix, content):
        path = tmp_path / f"x{suffix}"
        for more in (b"\0", b"crc_num" + bytes(10), content):
            found = self.read_or_refuse(path, content + more)
            if found is not None:  # The same entries again are the same checkpoint, to protobuf.
                assert_same(found.arrays, make_arrays())

    def flip(self, path, content, places):
        """Flip bits, one at a time: each is refused, or everything that is read is as it was. How many are refused."""
        refused = 0
        for place in places:
            altered = bytearray(content)
            altered[place // 8] ^= 1 << place % 8
            found = self.read_or_refuse(path, altered)
            if found is None:
                refused += 1
                continue
            assert found.description == DESCRIPTION, f"bit {place % 8} of byte {place // 8}"
            assert_same(found.arrays, make_arrays())
        return refused

    def test_flipped_bits(self, tmp_path, suffix, content):
        places = np.random.default_rng(1).choice(8 * len(content), 300, replace=False)
        assert self.flip(tmp_path / f"x{suffix}", content, places) > 280

    def test_flipped_bits_of_the_seal(self, tmp_path, suffix, content):
        """Of the name of the description's entry, and of what stands around it."""
        start = content.index(b"mindrepvgg.description")
        # Safetensors writes its metadata in any order: another entry, which means nothing, may stand in front.
        before = 1 if suffix == ".safetensors" else 12
        places = [*range(8 * max(start - before, 0), 8 * (start + 40))]
        assert self.flip(tmp_path / f"x{suffix}", content, places) == len(places)

    @pytest.mark.slow
    def test_every_bit(self, tmp_path, suffix, content):
        """Some bits mean nothing: the exponent's E in JSON, say."""
        assert self.flip(tmp_path / f"x{suffix}", content, range(8 * len(content))) > 7.9 * len(content)

    def test_every_bit_of_a_tensor_counts(self, tmp_path, suffix, content):
        start = content.index(make_arrays()["linear.bias"].tobytes())
        for bit in range(0, 8 * 20, 7):
            altered = bytearray(content)
            altered[start + bit // 8] ^= 1 << bit % 8
            (tmp_path / f"x{suffix}").write_bytes(altered)
            assert "was altered after it was written" in refusal(tmp_path / f"x{suffix}")

    def test_overwritten_regions(self, tmp_path, suffix, content):
        rng = np.random.default_rng(2)
        for _ in range(100):
            start, stop = np.sort(rng.integers(len(content) + 1, size=2))
            altered = content[:start] + rng.bytes(stop - start) + content[stop:]
            found = self.read_or_refuse(tmp_path / f"x{suffix}", altered)
            assert found is None or altered == content

    def test_noise(self, tmp_path, suffix):
        rng = np.random.default_rng(3)
        for size in rng.integers(1, 400, size=300):
            assert self.read_or_refuse(tmp_path / f"x{suffix}", rng.bytes(size)) is None

    def test_an_altered_description_is_found(self, tmp_path, suffix, content):
        altered = content.replace(b": 3, ", b": 4, ")
        assert sum(a != b for a, b in zip(altered, content, strict=True)) == 1
        (tmp_path / f"x{suffix}").write_bytes(altered)
        assert "does not match its SHA-256" in refusal(tmp_path / f"x{suffix}")

    def test_a_description_without_its_digest_is_found(self, tmp_path, suffix, content):
        for altered in (b"sha257", b"shb256"):
            (tmp_path / f"x{suffix}").write_bytes(content.replace(b"sha256", altered))
            assert "was altered" in refusal(tmp_path / f"x{suffix}")


def ckpt(*entries):
    """The bytes of a .ckpt with these (name, type, dims, content)."""
    message = Checkpoint()
    for name, kind, dims, content in entries:
        value = message.value.add()
        value.tag = name
        value.tensor.tensor_type = kind
        value.tensor.dims.extend(dims)
        value.tensor.tensor_content = content
    return message.SerializeToString()


# bfloat16, and what each is as float32: 1, -0, the least above 0, infinity, a NaN with a payload, about 1/3
BFLOAT16_BITS = np.array([0x3F80, 0x8000, 0x0001, 0x7F80, 0xFFC1, 0x3EAB], np.uint16)
BFLOAT16_VALUES = np.array([0x3F800000, 0x80000000, 0x00010000, 0x7F800000, 0xFFC10000, 0x3EAB0000], "u4").view("f4")


class TestASealTornOff:
    """A file without a description is another program's, unless something of our description is left in it."""

    @pytest.fixture
    def text(self, tmp_path):
        write_weights(tmp_path / "x.safetensors", make_arrays(), DESCRIPTION)
        header = (tmp_path / "x.safetensors").read_bytes()[8:].partition(b"}}")[0]
        return json.loads(header + b"}}")["__metadata__"]["mindrepvgg.description"]

    @pytest.mark.parametrize("name", ["mindrepvgg/description", "mindrepvgg.descriptimn", "x.y", "x", ""])
    def test_under_another_name(self, tmp_path, text, name):
        weights = [(n, "Float32", (3,), bytes(12)) for n in ("a.weight", "b.weight")]
        note = (name, "UInt8", (len(text),), text.encode())
        for entries in ([note, *weights], [*weights, note], [("c", "Int8", (2 << 20,), bytes(2 << 20)), note]):
            (tmp_path / "x.ckpt").write_bytes(ckpt(*entries))
            assert "was altered after it was written: its description or the name" in refusal(tmp_path / "x.ckpt")
        content = safetensors_bytes({"w": np.zeros(3)}, metadata={name: text})
        (tmp_path / "x.safetensors").write_bytes(content)
        assert "was altered after it was written: its description or the name" in refusal(tmp_path / "x.safetensors")

    def test_in_a_field_that_no_checkpoint_has(self, tmp_path):
        write_weights(tmp_path / "x.ckpt", make_arrays(), DESCRIPTION)
        content = bytearray((tmp_path / "x.ckpt").read_bytes())
        content[0] ^= 0x10  # field 3 for field 1: protobuf skips the entry
        (tmp_path / "x.ckpt").write_bytes(content)
        assert "was altered after it was written: its description or the name" in refusal(tmp_path / "x.ckpt")

    @pytest.mark.parametrize("note", ['{"a": 1}', '{"sha256": "0123"}', "sha256", "mindrepvgg", "description"])
    def test_what_others_write_is_no_trace(self, tmp_path, note):
        (tmp_path / "x.ckpt").write_bytes(
            ckpt(("w", "Float32", (3,), bytes(12)), ("note", "UInt8", (len(note),), note.encode()))
        )
        assert set(read_weights(tmp_path / "x.ckpt").arrays) == {"w", "note"}
        metadata = {"note": note, "sha256": "0" * 64, "format": "pt"}
        (tmp_path / "x.safetensors").write_bytes(safetensors_bytes({"w": np.zeros(3)}, metadata=metadata))
        assert read_weights(tmp_path / "x.safetensors").description == {}

    def test_saved_again_by_mindspore(self, tmp_path):
        """With the description it is ours still; without it a file as any other."""
        write_weights(tmp_path / "x.ckpt", make_arrays(), DESCRIPTION)
        entries = [{"name": n, "data": p} for n, p in ms.load_checkpoint(str(tmp_path / "x.ckpt")).items()]
        ms.save_checkpoint(entries, str(tmp_path / "again.ckpt"))
        assert read_weights(tmp_path / "again.ckpt").description == DESCRIPTION
        ms.save_checkpoint([e for e in entries if e["name"] in make_arrays()], str(tmp_path / "bare.ckpt"))
        assert read_weights(tmp_path / "bare.ckpt").description == {}


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


def safetensors(header, content):
    """The bytes of a .safetensors file with this header."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content


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
