"""The errors a user can cause."""

import pickle

import pytest

from mindrepvgg.data.inputs import InputFiles
from mindrepvgg.errors import CheckpointError, DataError

pytestmark = pytest.mark.compat


def test_a_name_with_line_breaks_leaves_the_message_on_one_line():
    with pytest.raises(DataError, match=r"^a b c d does not exist; give pictures"):
        InputFiles(["a\nb\x85c\u2028d"])


def test_the_middle_of_a_long_name_is_left_out():
    error = CheckpointError(f"{'x' * 3000}{'y' * 3000}.ckpt does not exist")
    assert str(error) == f"{'x' * 200}...{'y' * 92}.ckpt does not exist"


def test_an_error_travels_between_processes():
    error = pickle.loads(pickle.dumps(CheckpointError("one line")))
    assert (type(error), str(error)) == (CheckpointError, "one line")
