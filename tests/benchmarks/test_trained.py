"""Trained networks are kept by what decides their weights."""

from types import SimpleNamespace

import pytest
from support import TINY_DIGITS, script

from mindrepvgg.recipe.schema import Recipe


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A function (**changes of the recipe): the cached checkpoint's name; its list `runs` has the trainings."""
    module = script("benchmarks/trained")
    runs = []

    def trainer(recipe):
        path = tmp_path / "last.ckpt"
        path.write_text(f"network {len(runs)}")
        runs.append(recipe)
        return SimpleNamespace(run=lambda: SimpleNamespace(finished=True, last=path))

    monkeypatch.setattr(module, "Trainer", trainer)

    def run(**changes):
        path = module.trained(Recipe(**{**TINY_DIGITS, **changes}), tmp_path / "cache")
        return path.name, path.read_text()

    run.runs = runs
    return run


def test_a_recipe_is_trained_once(trained, tmp_path):
    name, content = trained(seed=3)
    assert trained(seed=3, ckpt_save_dir=str(tmp_path / "elsewhere")) == (name, content)
    assert len(trained.runs) == 1
    assert trained.runs[0].ckpt_save_dir != "elsewhere"
    assert name.startswith("repvgg-")


def test_another_recipe_or_other_weights_to_start_from_are_another_network(trained, tmp_path):
    start = tmp_path / "start.ckpt"
    start.write_bytes(b"weights")
    first = trained(pretrained=str(start))
    (tmp_path / "copy.ckpt").write_bytes(b"weights")
    assert trained(pretrained=str(tmp_path / "copy.ckpt")) == first, "the same weights under another name"
    start.write_bytes(b"others")
    names = {first, trained(pretrained=str(start)), trained(), trained(lr=0.01), trained(seed=1)}
    assert len(names) == len(trained.runs) == 5
