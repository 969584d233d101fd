"""Networks that studies train, kept so that several tables, and the next run, share them."""

import contextlib
import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

from mindrepvgg.errors import UserError
from mindrepvgg.files import atomic_path
from mindrepvgg.recipe.schema import KEYS, Recipe
from mindrepvgg.text import plain
from mindrepvgg.training.trainer import Trainer
from mindrepvgg.version import __version__

CACHE = Path(__file__).resolve().parents[1] / "outputs" / "trained"


class NotTrainedError(UserError):
    """The network is not in the cache, and nothing is to be trained."""


def trained(recipe: Recipe, cache: Path = CACHE, trains: bool = True) -> Path:
    """Train a recipe to its end, unless the cache holds its network.

    Args:
        recipe: what to train; the folder that it names is not used.
        cache: a folder of checkpoints, named by the digest of their recipe.
        trains: whether to train what the cache does not hold.

    Returns:
        The checkpoint of the last epoch.

    Raises:
        NotTrainedError: the cache does not hold the network, and `trains` is off.
    """
    path = cache / f"{recipe.model}-{_digest(recipe)}.ckpt"
    if not path.exists():
        if not trains:
            raise NotTrainedError(f"{path.name} is not in {cache}")
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
            run = recipe.replace(ckpt_save_dir=folder, val_while_train=False, keep_checkpoint_max=0)
            result = Trainer(run).run()
            if not result.finished:
                raise KeyboardInterrupt
            with atomic_path(path) as temporary:
                shutil.copyfile(result.last, temporary)
    return path


def _digest(recipe) -> str:
    """Return a digest of what decides the trained weights: the recipe, the files it starts from, the version.

    Keys with their default are left out, so that a key which a later commit adds changes no digest.
    """
    values = {name: value for name, value in recipe.to_dict().items() if value != plain(KEYS[name].default)}
    values |= {"ckpt_save_dir": None, "data_dir": Path(recipe.data_dir).name}
    for name in ("pretrained", "scales"):
        if Path(getattr(recipe, name)).is_file():
            values[name] = hashlib.sha256(Path(getattr(recipe, name)).read_bytes()).hexdigest()
    return hashlib.sha256(json.dumps([__version__, values], sort_keys=True).encode()).hexdigest()[:16]
