"""The folder of a run: what is kept, and what is refused."""

import errno
import os
import re
import socket
import subprocess
import sys

import pytest

from mindrepvgg.errors import TrainingError
from mindrepvgg.training import run_folder
from mindrepvgg.training.run_folder import RunFolder, find_last


class TestRunFolder:
    @pytest.fixture
    def folder(self, tmp_path):
        """A folder with a run, another model's run, and what is nobody's."""
        for name in (
            "repvgg_last.ckpt",
            "repvgg_best.ckpt",
            "repvgg_ema_best.ckpt",
            "repvgg_precise_bn.ckpt",
            "repvgg-1.ckpt",
            "repvgg-12.ckpt",
            "repvgg_a0_last.ckpt",
            "repvgg_a0_best.ckpt",
            "repvgg_a0-3.ckpt",
            *self.OTHERS,
        ):
            (tmp_path / name).write_text(name)
        return RunFolder(tmp_path, "repvgg")

    OTHERS = ("repvgg_b0_best.ckpt", "repvgg-final.ckpt", "repvgg-1.txt", "notes.md", "log.jsonl", "repvgg_deploy.ckpt")

    def test_start_anew_removes_the_runs_alone(self, folder):
        folder.start_anew()
        assert sorted(path.name for path in folder.path.iterdir()) == sorted(self.OTHERS)
        folder.start_anew()
        folder.check(None, overwrite=False)

    def test_nothing_is_removed_where_nothing_was(self, tmp_path):
        RunFolder(tmp_path / "none", "repvgg").start_anew()
        assert not (tmp_path / "none").exists()

    def test_check(self, folder, tmp_path_factory):
        with pytest.raises(
            TrainingError, match=r"holds a run already \(repvgg_a0_last\.ckpt\); add --resume .+ --over"
        ):
            folder.check(None, overwrite=False)
        folder.check(None, overwrite=True)
        folder.check(folder.last, overwrite=False)
        with pytest.raises(TrainingError, match=r"^resume continues a run and overwrite discards it; give one of the"):
            folder.check(folder.last, overwrite=True)
        elsewhere = tmp_path_factory.mktemp("elsewhere") / "repvgg_last.ckpt"
        elsewhere.write_text("")
        with pytest.raises(TrainingError, match=r"holds another run \(repvgg_a0_last\.ckpt\) than .+elsewhere"):
            folder.check(elsewhere, overwrite=False)
        # A checkpoint that is not there is another's error.
        folder.check(folder.path / "none.ckpt", overwrite=False)
        RunFolder(folder.path / "new", "repvgg").check(elsewhere, overwrite=False)
        RunFolder(folder.path / "new", "repvgg").check(None, overwrite=False)

    @pytest.mark.parametrize(
        ("policy", "most", "kept", "chosen"),
        [
            ("latest_k", 2, [(1, 90.0), (2, 10.0), (3, None)], [2, 3]),
            ("latest_k", 5, [(1, 90.0), (2, 10.0)], [1, 2]),
            ("top_k", 2, [(1, 90.0), (2, 10.0), (3, 50.0)], [1, 3]),
            ("top_k", 2, [(1, 50.0), (2, 50.0), (3, 50.0)], [2, 3]),
            ("top_k", 1, [(1, 50.0), (2, 60.0), (3, 60.0), (4, 50.0)], [3]),
            ("top_k", 2, [(1, None), (2, 0.0), (3, None)], [2, 3]),
            ("top_k", 1, [(1, 0.0), (2, None)], [1]),
        ],
    )
    def test_keep(self, tmp_path, policy, most, kept, chosen):
        folder = RunFolder(tmp_path, "repvgg")
        others = ["repvgg_last.ckpt", "repvgg-99.ckpt"]
        for path in (*(folder.epoch(epoch) for epoch, _ in kept), *(tmp_path / name for name in others)):
            path.write_text("")
        assert [entry[0] for entry in folder.keep(kept, most, policy)] == chosen
        expected = {*others, *(f"repvgg-{epoch}.ckpt" for epoch in chosen)}
        assert {path.name for path in tmp_path.iterdir()} == expected

    def test_a_file_that_is_gone_is_no_matter(self, tmp_path):
        assert RunFolder(tmp_path, "repvgg").keep([[1, None], [2, None]], 1, "latest_k") == [[2, None]]

    def test_find_last(self, folder):
        assert find_last(folder.path, "repvgg_a0") == folder.path / "repvgg_a0_last.ckpt"
        with pytest.raises(TrainingError, match=r"repvgg_b0_last\.ckpt does not exist: there is no run to resume"):
            find_last(folder.path, "repvgg_b0")


# Holds a folder, says so, and ends when its input does.
HOLD = """
import sys
from mindrepvgg.errors import TrainingError
from mindrepvgg.training.run_folder import RunFolder
try:
    with RunFolder(sys.argv[1], "repvgg").owned():
        print("has it", flush=True)
        sys.stdin.read()
except TrainingError as error:
    print(error, flush=True)
"""


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(run_folder, "_PATIENCE", 0.0)


@pytest.mark.usefixtures("impatient")
class TestTheOwner:
    @staticmethod
    def hold(path):
        """Another process that holds the folder, or has been refused; and its first line."""
        command = [sys.executable, "-c", HOLD, str(path)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return process, process.stdout.readline()

    def test_a_second_run_is_refused_until_the_first_is_dead(self, tmp_path):
        folder = RunFolder(tmp_path / "new", "repvgg")
        process, line = self.hold(folder.path)
        assert line == "has it\n"
        (folder.path / ".repvgg_last.ckpt.abcdefgh.partial").touch()
        owner = rf"new belongs to a run that is under way, process {process.pid} on {re.escape(socket.gethostname())}; "
        for attempt in (folder.check_free, lambda: folder.owned().__enter__()):
            with pytest.raises(TrainingError, match=owner + r"wait for its end, stop it \(touch .+stop\), or give an"):
                attempt()
        assert len(list(folder.path.iterdir())) == 2, "what is under way was not tidied up"
        process.kill()
        process.communicate()
        folder.check_free()
        with folder.owned():
            assert [path.name for path in folder.path.iterdir()] == [".lock"]
            assert folder.lock.read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"

    @pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
    def test_what_is_no_file_holds_no_lock(self, tmp_path, make):
        make(tmp_path / ".lock")
        for attempt in (RunFolder(tmp_path, "repvgg").check_free, RunFolder(tmp_path, "repvgg").owned().__enter__):
            with pytest.raises(TrainingError, match=r"/\.lock is in the way of the run's lock, which is a file"):
                attempt()

    def test_of_two_that_start_together_one_has_it(self, tmp_path):
        both = [self.hold(tmp_path / "new") for _ in range(2)]
        for process, _ in both:
            process.communicate("")
        assert sorted(line[:6] for _, line in both) == sorted(["has it", f"{tmp_path}"[:6]])

    def test_an_error_gives_it_back(self, tmp_path):
        folder = RunFolder(tmp_path, "repvgg")
        with pytest.raises(TrainingError, match="under way"), folder.owned():
            folder.check_free()
        folder.check_free()

    def test_what_another_program_is_writing_stays(self, tmp_path):
        own = ["repvgg-12.ckpt", "curves.png", "repvgg_ema_best.ckpt", "log.jsonl"]
        others = ["repvgg_deploy.ckpt", "repvgg_a0_best.ckpt", "repvgg-x.ckpt", "notes"]
        for name in (*own, *others):
            (tmp_path / f".{name}.abc_1234.partial").touch()
        with RunFolder(tmp_path, "repvgg").owned():
            found = sorted(path.name for path in tmp_path.glob("*.partial"))
        assert found == sorted(f".{name}.abc_1234.partial" for name in others)

    @pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
    def test_a_file_system_without_locks_is_told_once(self, tmp_path, monkeypatch, caplog, number):
        def refuse(*_):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr("fcntl.flock", refuse)
        folder = RunFolder(tmp_path, "repvgg")
        folder.lock.touch()
        folder.check_free()
        assert not caplog.messages
        with folder.owned(), folder.owned():
            pass
        assert caplog.messages == 2 * [
            f"the file system of {tmp_path} has no locks ({os.strerror(number)}): see to it that no other run is "
            f"started in this folder"
        ]

    @pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
    def test_a_folder_that_cannot_be_written_is_named(self, tmp_path, monkeypatch, number):
        def refuse(path, *_):
            raise OSError(number, os.strerror(number), path)

        folder = RunFolder(tmp_path, "repvgg")
        monkeypatch.setattr("os.open", refuse)
        with pytest.raises(OSError, match=re.escape(os.strerror(number))) as caught, folder.owned():
            pass
        assert caught.value.filename == str(tmp_path)

    @pytest.mark.parametrize("place", ["file", "file/run"])
    def test_a_folder_where_a_file_is(self, tmp_path, place):
        (tmp_path / "file").touch()
        with (
            pytest.raises(TrainingError, match=rf"^ckpt_save_dir \(=.+{place}\) leads to a file; give a folder"),
            RunFolder(tmp_path / place, "repvgg").owned(),
        ):
            pass


class TestFindLast:
    def test_the_only_run_needs_no_name(self, tmp_path):
        with pytest.raises(TrainingError, match=r"\*_last\.ckpt does not exist: there is no run to resume;"):
            find_last(tmp_path)
        (tmp_path / "repvgg_last.ckpt").touch()
        assert find_last(tmp_path) == tmp_path / "repvgg_last.ckpt"
        (tmp_path / "repvgg_a0_last.ckpt").touch()
        with pytest.raises(TrainingError, match=r"holds 2 runs \(repvgg_a0_last\.ckpt, repvgg_last\.ckpt\); give the"):
            find_last(tmp_path)
        assert find_last(tmp_path, "repvgg") == tmp_path / "repvgg_last.ckpt"
