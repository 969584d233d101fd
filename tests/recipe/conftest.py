"""Fixtures of the recipe's tests."""

import pytest


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a yaml file in a fresh working directory and give its relative path."""
    monkeypatch.chdir(tmp_path)

    def write_file(text, name="configs/x.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
        return name

    return write_file
