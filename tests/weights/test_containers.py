"""Weight files: both containers, and files that are damaged in every way we could think of.

test_other_containers.py has MindSpore's and PyTorch's own files, and crafted ones.
"""

import json
import os

import mindspore as ms
import numpy as np
import pytest
from mindspore.train.checkpoint_pb2 import Checkpoint
from safetensors.numpy import save as safetensors_bytes
from support.weight_files import DESCRIPTION, DTYPES, SUFFIXES, assert_same, ckpt, make_arrays, refusal

from mindrepvgg.errors import CheckpointError
from mindrepvgg.weights import containers
from mindrepvgg.weights.containers import read_weights, write_weights

pytestmark = pytest.mark.compat


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
            "is an ONNX file, for inference, and no checkpoint: ",
        ),
        (b"\x08\x07\x3a\x05graph", ".onnx", "is an ONNX file"),
        (b"not a message", ".onnx", "is an ONNX file"),
        (b"\x0a\x031.1\x12\x09MindSpore*\x06", ".ckpt", "is a MindIR file, for inference, and no checkpoint: "),
        (b"2\nstage0.weight 2 3f800000 bf000000\n", ".ckpt", "is a .wts file, for inference, and no checkpoint: "),
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
