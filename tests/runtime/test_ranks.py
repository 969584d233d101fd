"""The processes of a run as one of them sees itself: alone, under each launcher, and who of the others still lives."""

import socket
from unittest import mock

import numpy as np
import pytest
from mindspore import Parameter, Tensor

from mindrepvgg.errors import UserError
from mindrepvgg.runtime.environment import launched_processes
from mindrepvgg.runtime.ranks import Ranks, start

pytestmark = pytest.mark.compat

LAUNCHERS = (
    "MS_ROLE",
    "MS_WORKER_NUM",
    "MS_SCHED_HOST",
    "MS_SCHED_PORT",
    "OMPI_COMM_WORLD_SIZE",
    "RANK_TABLE_FILE",
    "RANK_SIZE",
)


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)


class TestAlone:
    def test_it_is_the_first_of_one(self):
        ranks = Ranks()
        assert (ranks.rank, ranks.size, ranks.is_first) == (0, 1, True)
        assert not Ranks(1, 2).is_first

    @pytest.mark.parametrize(
        "array",
        [np.array([[np.nan, -0.0, 1e-45]], np.float32), np.array([2**62 + 1, -1]), np.float64(0.1), np.zeros((0, 3))],
    )
    def test_gather(self, array):
        gathered = Ranks().gather(array)
        assert gathered.shape == (1, *np.shape(array))
        assert gathered.dtype == array.dtype
        assert gathered.tobytes() == array.tobytes()

    def test_gather_of_what_is_not_contiguous(self):
        array = np.arange(6.0).reshape(2, 3).T
        np.testing.assert_array_equal(Ranks().gather(array)[0], array)

    def test_any(self):
        assert Ranks().any(True) is True
        assert Ranks().any(False) is False

    def test_parameters_stay(self):
        values = np.array([np.pi, -0.0, np.nan], np.float32)
        parameters = [Parameter(Tensor(values), "one"), Parameter(Tensor(2 * values), "two")]
        ranks = Ranks()
        ranks.broadcast(parameters)
        ranks.average(parameters)
        ranks.average(iter(()))
        assert [p.asnumpy().tobytes() for p in parameters] == [values.tobytes(), (2 * values).tobytes()]

    def test_leaving_needs_nobody(self):
        Ranks().leave()

    def test_leaving_keeps_the_watch_until_all_have_stopped_theirs(self, monkeypatch):
        """With it, its connections would end, which one that is still about to stop would take for a death."""
        ranks, watch, seen = Ranks(), mock.Mock(), []
        ranks.watch = watch
        monkeypatch.setattr(ranks, "any", lambda _: seen.append((ranks.watch, watch.stop.called)))
        ranks.leave()
        assert seen == [(watch, False), (watch, True)]
        assert ranks.watch is None


class TestStart:
    @pytest.mark.parametrize("distribute", ["auto", False])
    def test_without_a_launcher_it_is_alone(self, distribute):
        ranks = start(distribute)
        assert (ranks.rank, ranks.size, ranks.watch) == (0, 1, None)

    def test_without_the_launcher_it_needs(self):
        with pytest.raises(UserError) as caught:
            start(True)
        assert str(caught.value) == (
            "distribute (=True) needs a launcher: msrun --worker_num 8 --local_worker_num 8 python -m mindrepvgg train "
            "...; leave distribute at auto to train on one device when there is none"
        )

    @pytest.mark.parametrize("role", ["MS_WORKER", "MS_SCHED"])
    def test_it_does_not_stay_alone_under_a_launcher(self, monkeypatch, role):
        """Every process would write its own run into one folder."""
        monkeypatch.setenv("MS_ROLE", role)
        monkeypatch.setenv("MS_WORKER_NUM", "8")
        with pytest.raises(UserError) as caught:
            start(False)
        assert str(caught.value) == (
            "distribute (=False) trains in one process, but a launcher started 8: start it without msrun "
            "or mpirun, or leave distribute at auto"
        )

    def test_a_rank_table_that_was_exported_for_others(self, monkeypatch):
        monkeypatch.setenv("RANK_TABLE_FILE", "/etc/table.json")
        monkeypatch.setenv("RANK_SIZE", "8")
        assert start(False).size == 1

    @pytest.mark.parametrize("distribute", ["auto", True])
    @pytest.mark.parametrize("error", [RuntimeError, ValueError, TypeError])
    def test_processes_that_do_not_meet(self, monkeypatch, distribute, error):
        def init():
            raise error("no way to the scheduler. It may be one of the following reasons:\n\n----\nC++ call stack")

        monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "8")
        monkeypatch.setattr("mindrepvgg.runtime.ranks.init", init)
        with pytest.raises(UserError) as caught:
            start(distribute)
        assert str(caught.value) == (
            "the 8 processes of this run did not find each other: no way to the scheduler; what the scheduler and the "
            "other processes print tells why"
        )

    def test_a_scheduler_that_loses_a_worker(self, monkeypatch):
        def init():
            raise RuntimeError("The total number of timed out node is 1.\n\n----\nC++ call stack")

        monkeypatch.setenv("MS_ROLE", "MS_SCHED")
        monkeypatch.setenv("MS_WORKER_NUM", "2")
        monkeypatch.setattr("mindrepvgg.runtime.ranks.init", init)
        with pytest.raises(
            UserError, match=r"^the scheduler of this run's 2 processes lost one of them: The total num"
        ):
            start("auto")


def test_a_port_in_use_is_named_at_once(monkeypatch):
    """By the scheduler; MindSpore would wait for the whole time-out."""
    monkeypatch.setattr("mindrepvgg.runtime.ranks._NOTICE_SECONDS", 0)
    monkeypatch.setattr("mindrepvgg.runtime.ranks.init", lambda: pytest.fail("it went on"))
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        values = {"MS_ROLE": "MS_SCHED", "MS_WORKER_NUM": "2", "MS_SCHED_HOST": "127.0.0.1", "MS_SCHED_PORT": str(port)}
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        message = f"port {port} of 127.0.0.1 is in use by another program: give msrun another one with --master_port"
        with pytest.raises(UserError, match=f"^{message}$"):
            start("auto")


@pytest.mark.parametrize(
    ("environment", "processes"),
    [
        ({}, None),
        ({"MS_ROLE": "MS_WORKER", "MS_WORKER_NUM": "4"}, 4),
        ({"MS_ROLE": "MS_SCHED", "MS_WORKER_NUM": "4"}, 4),
        ({"MS_ROLE": "MS_WORKER", "MS_WORKER_NUM": "1"}, 1),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, 2),
        ({"RANK_TABLE_FILE": "hccl.json", "RANK_SIZE": "8"}, 8),
        ({"RANK_TABLE_FILE": "", "RANK_SIZE": "8"}, None),
        ({"RANK_SIZE": "8"}, None),
        ({"RANK_TABLE_FILE": "hccl.json"}, None),
        ({"MS_ROLE": "MS_PSERVER", "MS_WORKER_NUM": "4"}, None),
    ],
)
def test_launched_processes(monkeypatch, environment, processes):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert launched_processes() == processes
