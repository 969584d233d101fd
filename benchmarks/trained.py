"""Networks that studies train, kept so that several tables, and the next run, share them."""

import contextlib
import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

from mindrepvgg.files import atomic_path
from mindrepvgg.recipe.schema import Recipe
from mindrepvgg.training.trainer import Trainer
from mindrepvgg.version import __version__

CACHE = Path(__file__).resolve().parents[1] / "outputs" / "trained"


def trained(recipe: Recipe, cache: Path = CACHE) -> Path:
    """Train a recipe to its end, unless the cache holds its network.

    Args:
        recipe: what to train; the folder that it names is not used.
        cache: a folder of checkpoints, named by the digest of their recipe.

    Returns:
        The checkpoint of the last epoch.
    """
    path = cache / f"{recipe.model}-{_digest(recipe)}.ckpt"
    if not path.exists():
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
            run = recipe.replace(ckpt_save_dir=folder, val_while_train=False, keep_checkpoint_max=0)
            result = Trainer(run).run()
            if not result.finished:
                raise KeyboardInterrupt
            with atomic_path(path) as temporary:
                shutil.copyfile(result.last, temporary)
    return path


def _digest(recipe) -> str:
    """Return a digest of what decides the trained weights: the recipe, the weights it starts from, the version."""
    values = {**recipe.to_dict(), "ckpt_save_dir": None, "data_dir": Path(recipe.data_dir).name}
    if recipe.pretrained:
        values["pretrained"] = hashlib.sha256(Path(recipe.pretrained).read_bytes()).hexdigest()
    return hashlib.sha256(json.dumps([__version__, values], sort_keys=True).encode()).hexdigest()[:16]
