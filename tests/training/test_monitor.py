"""What watches a run: the log that programs read, the picture of the curves, the polite way to stop."""

import contextlib
import fcntl
import json
import os
import re
import signal
import struct
import sys
import termios
from types import MappingProxyType, SimpleNamespace

import numpy as np
import pytest
from mindspore import Tensor
from support import context_mode

from mindrepvgg.drawing.curves import draw_curves
from mindrepvgg.errors import UserError
from mindrepvgg.training import monitor
from mindrepvgg.training.monitor import EventFiles, Meter, Profile, Progress, RunLog, StopRequest

pytestmark = pytest.mark.compat


class TestRunLog:
    @pytest.fixture
    def path(self, tmp_path):
        """A log of steps 2, 4, 6 and a validation after step 6."""
        log = RunLog(tmp_path / "log.jsonl")
        for step in (2, 4, 6):
            log.write("train", 1 + step // 5, step, loss=1 / step, **self.RATE)
        log.write("validate", 2, 6, top1=12.5, top5=50.0, loss=None)
        return log.path

    RATE = MappingProxyType({"progress": 0.5, "lr": 0.1})

    @staticmethod
    def steps(path):
        return [json.loads(line)["step"] for line in path.read_text().splitlines()]

    def test_each_line_is_an_object(self, path):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        assert records[0] == {"event": "train", "epoch": 1, "step": 2, "loss": 0.5, **self.RATE}
        assert records[-1] == {"event": "validate", "epoch": 2, "step": 6, "top1": 12.5, "top5": 50.0, "loss": None}
        assert path.read_text().endswith("\n")

    def test_a_record_is_on_disk_at_once(self, tmp_path):
        log = RunLog(tmp_path / "log.jsonl")
        assert log.path.read_text() == ""
        log.write("train", 1, 1)
        assert self.steps(log.path) == [1]

    def test_a_new_run_starts_a_new_log(self, path):
        assert RunLog(path).records == []
        assert path.read_text() == ""

    @pytest.mark.parametrize(
        ("keep_until", "steps"), [(0, []), (3, [2]), (4, [2, 4]), (6, [2, 4, 6, 6]), (9, [2, 4, 6, 6])]
    )
    def test_resuming_cuts_what_will_be_run_again(self, path, keep_until, steps):
        log = RunLog(path, keep_until=keep_until)
        assert [record["step"] for record in log.records] == steps
        assert self.steps(path) == steps
        log.write("note", 9, 10)
        assert self.steps(path) == [*steps, 10]

    def test_resuming_keeps_floats_to_the_last_bit(self, tmp_path):
        values = [float(x) for x in np.random.default_rng(0).normal(size=50).astype(np.float32)]
        log = RunLog(tmp_path / "log.jsonl")
        for step, value in enumerate(values):
            log.write("train", 1, step, loss=value, **self.RATE)
        assert [record["loss"] for record in RunLog(log.path, keep_until=99).records] == values

    def test_a_full_disk_names_the_log(self, tmp_path):
        (tmp_path / "log.jsonl").symlink_to("/dev/full")
        log = RunLog(None)
        log.path = tmp_path / "log.jsonl"
        with pytest.raises(OSError, match="No space left") as caught:
            log.write("train", 1, 1)
        assert caught.value.filename == str(log.path)

    def test_resuming_without_a_log(self, tmp_path):
        assert RunLog(tmp_path / "log.jsonl", keep_until=5).records == []

    @pytest.mark.parametrize("cut", [1, 5, 20, -1])
    def test_a_last_line_cut_short_is_dropped(self, path, cut):
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(lines[:-1]) + lines[-1][:cut].rstrip("}\n"))
        assert [record["step"] for record in RunLog(path, keep_until=9).records] == [2, 4, 6]
        assert self.steps(path) == [2, 4, 6], "the rest of the line is gone from the file"

    @pytest.mark.parametrize("rest", [b"\0\0\0\0", b'{"event": "tr\xff\xc3'])
    def test_a_last_line_of_other_bytes_is_dropped(self, path, rest):
        path.write_bytes(path.read_bytes() + rest)
        assert [record["step"] for record in RunLog(path, keep_until=9).records] == [2, 4, 6, 6]

    def test_json_that_is_no_record_is_left_out_with_a_notice(self, path, caplog):
        lines = [
            "[1]",
            "{}",
            "3",
            "null",
            '"train"',
            '{"event": null, "epoch": 1, "step": 2}',
            '{"event": "train", "epoch": 1, "step": 2}',
            '{"event": "train", "epoch": 1, "step": null, "progress": 1, "lr": 1, "loss": 1}',
            '{"event": "train", "epoch": true, "step": 2, "progress": 1, "lr": 1, "loss": 1}',
            '{"event": "validate", "epoch": 1, "step": 2, "top1": "12", "top5": 1, "loss": 1}',
            '{"event": "validate", "epoch": 1, "step": 2, "top1": null, "top5": 1, "loss": 1}',
            '{"event": "train", "epoch": 1, "step": 2, "progress": 1, "lr": 1, "loss": 1%s}' % (400 * "0"),
            '{"event": "validate", "epoch": 1%s, "step": 2, "top1": 1, "top5": 1, "loss": 1}' % (400 * "0"),
        ]
        content = path.read_text().splitlines()
        path.write_text("\n".join([content[0], *lines, *content[1:], ""]))
        log = RunLog(path, keep_until=9)
        assert [record["step"] for record in log.records] == self.steps(path) == [2, 4, 6, 6]
        assert caplog.messages == [f"{path}: lines that are no records are left out (13, line 2 first)"]
        draw_curves(log.records, path.with_name("curves.png"))

    @pytest.mark.parametrize("line", [b"step 4: loss 0.3\n", b"\xff\xfe\n", b"\n"])
    def test_a_line_that_is_no_json_is_refused(self, path, line):
        lines = path.read_bytes().splitlines(keepends=True)
        content = b"".join([lines[0], line, *lines[1:]])
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"^line 2 of .*log\.jsonl is not JSON; move the file away to start"):
            RunLog(path, keep_until=9)
        assert path.read_bytes() == content


class TestStopRequest:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_the_first_signal_asks(self, number, capsys):
        with StopRequest() as stop:
            assert not stop.asked
            os.kill(os.getpid(), number)
            assert stop.asked
        assert "stopping soon, the state will be saved; Ctrl-C once more to stop at once" in capsys.readouterr().err

    @pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
    def test_the_second_is_at_once(self, second):
        with StopRequest():
            os.kill(os.getpid(), signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), second)

    def test_the_handlers_of_before_come_back(self):
        before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        with StopRequest():
            assert signal.getsignal(signal.SIGINT) != before[0]
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


class TestProgress:
    def test_a_pipe_gets_lines_only(self, capsys):
        progress = Progress(10, 3)
        progress.step(1, 2)
        progress.show(0.5, 100)
        progress.say("epoch 1/2: loss 0.5000")
        progress.close()
        assert capsys.readouterr() == ("epoch 1/2: loss 0.5000\n", "")

    @pytest.mark.parametrize("columns", [80, 120])
    def test_a_terminal_shows_bar_rate_and_time_left_on_one_line(self, monkeypatch, columns):
        """On a real terminal of that width, with figures as long as they get: of 1,000 epochs, at 90,000 images/s."""
        master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
        monkeypatch.delenv("COLUMNS", raising=False)
        with os.fdopen(slave, "w", encoding="utf-8") as terminal, monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", terminal)
            patch.setattr(sys, "stdout", terminal)
            progress = Progress(10**6, 0)
            progress.bar.mininterval = 0
            for _ in range(3):
                progress.step(1000, 1000, 123456)
                progress.show(12.3456, 90000)
            progress.say("epoch 1000/1000: train loss 12.3456")
            progress.close()
        written = b""
        with contextlib.suppress(OSError):  # after the last of it, as nobody has the other end open any more
            while part := os.read(master, 1 << 16):
                written += part
        os.close(master)
        lines = re.split(r"[\r\n]+", written.decode())
        assert max(map(len, lines)) <= columns
        assert lines[-2].startswith("epoch 1000/1000:  37%|███"), lines
        assert re.search(r"\| \d\d:\d\d left, loss 12\.346, 90000 img/s$", lines[-2]), lines
        assert "epoch 1000/1000: train loss 12.3456" in lines


class TestMeter:
    def test_speed_and_waiting(self, monkeypatch):
        clock = SimpleNamespace(now=100.0)
        clock.perf_counter = lambda: clock.now
        monkeypatch.setattr(monitor, "time", clock)
        meter = Meter()
        clock.now += 5  # compilation, say
        meter.restart()
        for _ in range(4):
            with meter.waiting():
                clock.now += 0.5
            clock.now += 1.5
            meter.count(32)
        assert meter.read() == (128 / 8, 2 / 8)
        clock.now += 2
        meter.count(10)
        with contextlib.suppress(StopIteration), meter.waiting():
            clock.now += 2
            raise StopIteration
        assert meter.read() == (10 / 4, 2 / 4)
        assert meter.read() == (0, 0), "no time has passed"


class TestEventFiles:
    def test_the_package_may_be_missing(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "tensorboardX", None)
        with pytest.raises(UserError, match=r"^tensorboard \(=True\) needs the package tensorboardX: pip install "):
            EventFiles(tmp_path)

    def test_what_is_written(self, tmp_path):
        writer = pytest.importorskip("tensorboardX")
        events = EventFiles(tmp_path)
        log = RunLog(None, events=events)
        log.write("train", 1, 4, loss=0.5, lr=0.25, note="text", missing=None)
        log.write("train", 1, 8, loss=0.125, lr=0.25)
        log.write("validate", 1, 8, top1=12.5, correct=125)
        events.close()
        (path,) = tmp_path.iterdir()
        loader = writer.proto.event_pb2.Event
        found = {}
        for record in _records(path.read_bytes()):
            event = loader.FromString(record)
            for value in event.summary.value:
                found[value.tag, event.step] = value.simple_value
        assert found == {
            ("train/loss", 4): 0.5,
            ("train/lr", 4): 0.25,
            ("train/loss", 8): 0.125,
            ("train/lr", 8): 0.25,
            ("validate/top1", 8): 12.5,
            ("validate/correct", 8): 125,
        }


def _records(content):
    """The records of a TFRecord file: length (8 bytes), its checksum (4), content, its checksum (4)."""
    while content:
        length = int.from_bytes(content[:8], "little")
        yield content[12 : 12 + length]
        content = content[16 + length :]


class TestProfile:
    def test_closed_before_it_was_started(self, tmp_path):
        profile = Profile(tmp_path / "profile", steps=2)
        profile.step()
        profile.step()
        profile.step()
        profile.close()
        assert not (tmp_path / "profile").exists()

    def test_the_slowest_operators_on_a_cpu_and_on_ascend(self, tmp_path):
        """With the columns that MindSpore 2.10 writes on a CPU, and those that CANN documents."""
        profile = Profile(tmp_path)
        assert profile.format().startswith(f"profile: {tmp_path};"), "nothing was recorded"
        cpu = tmp_path / "run_ms" / "FRAMEWORK" / "cpu_op_type_info_0.csv"
        cpu.parent.mkdir(parents=True)
        head = "op_type,type_occurrences,execution_frequency(per-step),total_compute_time,avg_time(ms),percent"
        cpu.write_text("\n".join([head, *(f"Op{n},{n},1,{n},1,0.1" for n in range(12))]) + "\n")
        lines = profile.format().splitlines()
        assert lines[:2] == ["slowest operators  calls    ms  share", "Op11                  11  11.0    17%"]
        assert len(lines) == 1 + 10 + 1
        ascend = tmp_path / "run_ms" / "ASCEND_PROFILER_OUTPUT" / "op_statistic.csv"
        ascend.parent.mkdir()
        head = "Device_id,OP Type,Core Type,Count,Total Time(us),Min Time(us),Avg Time(us),Max Time(us),Ratio(%)"
        ascend.write_text(f"{head}\n0,Add,AI_VECTOR_CORE,2,500,1,250,400,25\n0,Conv2D,AI_CORE,4,1500,1,375,400,75\n")
        assert profile.format().splitlines()[1:3] == [
            "Conv2D                 4  1.5    75%",
            "Add                    2  0.5    25%",
        ]

    @pytest.mark.slow
    @pytest.mark.parametrize("taken", [3, 1, 0])
    def test_something_is_written(self, tmp_path, taken):
        """After its last step, and when the run ends before."""
        with context_mode("pynative"):
            profile = Profile(tmp_path / "profile", steps=3)
            profile.start()
            for _ in range(taken):
                (Tensor(np.ones(8, np.float32)) + 1).asnumpy()
                profile.step()
            profile.close()
            profile.close()
        assert [path for path in (tmp_path / "profile").rglob("*") if path.is_file()]
