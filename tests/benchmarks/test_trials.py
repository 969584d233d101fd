"""Trials of a recipe: each line changes its keys and no others, and is run once."""

import json
from pathlib import Path
from types import SimpleNamespace

from support import script

from mindrepvgg.recipe.sources import load_recipe

trials = script("benchmarks/trials")


def test_each_line_is_run_once_with_its_keys(tmp_path, monkeypatch, capsys):
    runs = []

    def train(recipe, overwrite):
        runs.append((recipe.lr, recipe.scale, recipe.val_interval, recipe.epoch_size))
        Path(recipe.ckpt_save_dir).mkdir(parents=True)
        records = [{"event": "train", "loss": 1.0}, {"event": "validate", "top1": 50.04 + len(runs)}]
        records += [{"event": "validate_ema", "top1": 70}] if recipe.ema else []
        (Path(recipe.ckpt_save_dir) / "log.jsonl").write_text("\n".join(map(json.dumps, records)))
        return SimpleNamespace(finished=True)

    monkeypatch.setattr(trials.api, "train", train)
    changes = tmp_path / "changes.txt"
    arguments = [str(changes), str(tmp_path / "runs"), "-c", "folder", "--data_dir", "photos", "--epoch_size", "9"]
    changes.write_text("\n--lr 0.02 --ema true\n")
    trials.main(arguments)
    changes.write_text("\n--lr 0.02 --ema true\n--scale [0.5,1.0]\n")
    trials.main(arguments)
    recipe = load_recipe("folder")
    assert runs == [
        (recipe.lr, recipe.scale, 9, 9),
        (0.02, recipe.scale, 9, 9),
        (recipe.lr, (0.5, 1.0), 9, 9),
    ]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()]
    assert rows[-5][:3] == ["changed", "top-1", "EMA"]
    assert [row[:3] for row in rows[-3:]] == [
        ["nothing", "51.0", ""],
        ["--lr 0.02 --ema true", "52.0", "70.0"],
        ["--scale [0.5,1.0]", "53.0", ""],
    ]
