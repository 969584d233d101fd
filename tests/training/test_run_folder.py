"""The folder of a run: what is kept, and what is refused."""

import pytest

from mindrepvgg.errors import TrainingError
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
