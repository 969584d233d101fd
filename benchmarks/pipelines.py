"""Data pipelines in images a second per core: ours, MindCV's and torchvision's, for training and validation.

The pictures are synthesised: smooth noise, 500x375, JPEG of quality 90, about 100 KB each. All pipelines read the same
files with the same settings (crops for 224x224, batches of 32, two workers) and take turns. Per core: images over the
processor time of all threads, which depends less on the machine's other work than the time on the clock. torchvision's
rows need torch and torchvision; it reads in the process itself, where its processor time can be counted.
"""

import functools
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mindrepvgg.errors import UserError
from mindrepvgg.runtime.optional import import_optional
from mindrepvgg.runtime.timing import take_turns, timed, times_as_fast
from mindrepvgg.text import markdown_table

_BATCH, _SIDE, _WORKERS = 32, 224, 2
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SHORT_SIDE = 256  # of the pictures in the MindRecord files: what evaluation at 224 resizes to

# A recipe's keys, and what torchvision calls the same.
_TRAINING = {
    "crop and flip": {},
    "and colour jitter 0.4": {"color_jitter": 0.4},
    "and AutoAugment": {"auto_augment": "autoaug-mstd0"},
    "and RandAugment m9": {"auto_augment": "randaug-m9-mstd0"},
    "and random erasing": {"re_prob": 0.25},
    "and mixup": {"mixup": 0.2},
}
_CONTESTANTS = _OURS, _RECORDS, _MINDCV, _TORCHVISION = "ours", "ours, MindRecord", "MindCV", "torchvision"


def measure(images=256, rounds=5) -> str:
    """Return the tables of training and of validation."""
    from mindrepvgg.data.datasets import open_source
    from mindrepvgg.data.pack import pack_folder

    with tempfile.TemporaryDirectory() as folder:
        files, records = Path(folder, "files"), Path(folder, "records")
        size = _synthesise(files / "val", images)
        os.symlink("val", files / "train")
        pack_folder(files, records, short_side=_SHORT_SIDE)
        source, packed = (open_source("imagenet", place, "train") for place in (files, records))
        training = {
            (name, contestant): run
            for name, keys in _TRAINING.items()
            for contestant, run in _trainers(keys, source, packed, files).items()
        }
        trained, validated = (
            take_turns({name: timed(run, clock=time.process_time) for name, run in runs.items()}, rounds, warmup=1)
            for runs in (training, _validators(source, files))
        )
    tables = _training_table(trained, images), _validation_table(validated, images)
    return "\n\n".join((_facts(images, size, rounds), *tables))


def _synthesise(folder, count):
    """Write `count` pictures of two classes; return their mean size in KB."""
    import cv2
    import numpy as np

    rng = np.random.default_rng(0)
    sizes = []
    for number in range(count):
        path = folder / f"class{number % 2}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = cv2.GaussianBlur(rng.normal(size=(375, 500, 3)).astype(np.float32), (0, 0), 1.0)
        smooth = cv2.resize(rng.normal(size=(6, 8, 3)).astype(np.float32), (500, 375), interpolation=cv2.INTER_CUBIC)
        picture = np.clip(128 + 40 * smooth + 110 * noise, 0, 255).astype(np.uint8)
        cv2.imwrite(str(path), picture, [cv2.IMWRITE_JPEG_QUALITY, 90])
        sizes.append(path.stat().st_size)
    return sum(sizes) / len(sizes) / 1000


def _facts(images, size, rounds):
    import cv2
    import mindspore as ms
    import PIL

    from mindrepvgg.runtime.environment import processor

    return (
        f"{processor()}, {os.cpu_count()} cores; {images} JPEGs of 500x375, {size:.0f} KB each; {_WORKERS} workers; "
        f"median of {rounds} epochs; OpenCV {cv2.__version__}, Pillow {PIL.__version__}, MindSpore {ms.__version__}."
    )


def _trainers(keys, source, packed, files):
    """Functions that run one epoch, by contestant."""
    from mindrepvgg.data.augment import Augmentation
    from mindrepvgg.data.train_loader import TrainLoader
    from mindrepvgg.models.preprocessing import Preprocessing

    augmentation = Augmentation(scale=(0.08, 1), ratio=(3 / 4, 4 / 3), hflip=0.5, **keys)

    def ours(source):
        loader = TrainLoader(
            source,
            Preprocessing(image_size=(_SIDE, _SIDE), mean=_MEAN, std=_STD, in_channels=3),
            augmentation,
            _BATCH,
            seed=0,
            num_parallel_workers=_WORKERS,
            num_classes=1000,
            as_uint8=augmentation.keeps_pixels,
        )
        return functools.partial(_count, functools.partial(loader.epoch, 0))

    runs = {_OURS: ours(source), _RECORDS: ours(packed), _MINDCV: _mindcv(files, keys)}
    transforms = _torchvision_training(keys)
    return {**runs, _TORCHVISION: _torchvision(files / "train", transforms)} if transforms else runs


def _validators(source, files):
    """Functions that run one pass, by contestant; decoding alone is the first."""
    from mindrepvgg.data.decode import decode
    from mindrepvgg.data.loader import EvalLoader
    from mindrepvgg.models.preprocessing import RESIZE_BACKENDS, Preprocessing

    def decode_all():
        with ThreadPoolExecutor(_WORKERS) as pool:
            count = len(source)
            read = pool.map(lambda i: decode(source.files.read(i), source.name(i), 3) is not None, range(count))
            assert sum(read) == count

    def ours(backend):
        preprocessing = Preprocessing(
            image_size=(_SIDE, _SIDE), mean=_MEAN, std=_STD, in_channels=3, resize_backend=backend
        )
        loader = EvalLoader(source, preprocessing, _BATCH, num_parallel_workers=_WORKERS, as_uint8=True)
        return functools.partial(_count, lambda: loader)

    runs = {"decoding alone": decode_all, **{f"ours, {backend}": ours(backend) for backend in RESIZE_BACKENDS}}
    runs[_MINDCV] = _mindcv(files, None)
    transforms = _torchvision_validation()
    return {**runs, _TORCHVISION: _torchvision(files / "val", transforms)} if transforms else runs


def _count(batches):
    for _ in batches():
        pass


def _mindcv(files, keys):
    """MindCV's own pipeline for a recipe's keys; for validation when they are None."""
    from mindcv.data import create_dataset, create_loader, create_transforms

    train, keys = keys is not None, dict(keys or {})
    split = "train" if train else "val"
    dataset = create_dataset("imagenet", root=str(files), split=split, shuffle=train, num_parallel_workers=_WORKERS)
    mixing = {"mixup": keys.pop("mixup", 0.0)}
    if train:
        # MindCV's own default is a jitter of 0.4.
        keys = {"auto_augment": None, "color_jitter": None, **keys}
    loader = create_loader(
        dataset,
        _BATCH,
        drop_remainder=train,
        is_training=train,
        transform=create_transforms(
            "imagenet", is_training=train, image_resize=_SIDE, interpolation="bilinear", **keys
        ),
        num_parallel_workers=_WORKERS,
        num_classes=1000,
        **(mixing if train else {}),
    )
    return functools.partial(_count, functools.partial(loader.create_tuple_iterator, num_epochs=1, output_numpy=True))


def _torchvision_training(keys):
    """The transforms of torchvision for a recipe's keys; None where it has none for them, or is not installed."""
    transforms = _import_torchvision()
    if not transforms or "mixup" in keys:
        return None
    policies = {
        "autoaug-mstd0": lambda: transforms.AutoAugment(),
        "randaug-m9-mstd0": lambda: transforms.RandAugment(2, 9),
    }
    steps = [transforms.RandomResizedCrop(_SIDE), transforms.RandomHorizontalFlip()]
    if "color_jitter" in keys:
        steps.append(transforms.ColorJitter(*[keys["color_jitter"]] * 3))
    if "auto_augment" in keys:
        steps.append(policies[keys["auto_augment"]]())
    steps += [transforms.ToTensor(), transforms.Normalize(_MEAN, _STD)]
    if "re_prob" in keys:
        steps.append(transforms.RandomErasing(keys["re_prob"]))
    return transforms.Compose(steps)


def _torchvision_validation():
    transforms = _import_torchvision()
    if not transforms:
        return None
    crop = [transforms.Resize(256), transforms.CenterCrop(_SIDE)]
    return transforms.Compose([*crop, transforms.ToTensor(), transforms.Normalize(_MEAN, _STD)])


def _import_torchvision():
    try:
        return import_optional("torchvision.transforms", "torch", "this row")
    except UserError:  # it is missing, or was built for another torch
        return None


def _torchvision(folder, transform):
    import torch
    from torchvision.datasets import ImageFolder

    torch.set_num_threads(1)
    loader = torch.utils.data.DataLoader(ImageFolder(folder, transform), _BATCH, shuffle=folder.name == "train")
    return functools.partial(_count, lambda: loader)


def _training_table(seconds, images):
    rows = []
    for case in _TRAINING:
        own = {name: seconds[case, name] for name in _CONTESTANTS if (case, name) in seconds}
        speeds = (f"{images / statistics.median(own[name]):.0f}" if name in own else "-" for name in _CONTESTANTS)
        pairs = ((_OURS, _MINDCV), (_RECORDS, _MINDCV), (_OURS, _TORCHVISION))
        ratios = (f"{times_as_fast(own[a], own[b]):.2f}" if b in own else "-" for a, b in pairs)
        rows.append((case, *speeds, *ratios))
    headings = ("training, images/s per core", "ours", "from MindRecord", "MindCV", "torchvision")
    ratios = ("ours / MindCV", "MindRecord / MindCV", "ours / torchvision")
    short = f"MindRecord: the same pictures packed by `mindrepvgg pack --short_side {_SHORT_SIDE}`."
    return f"{markdown_table((*headings, *ratios), rows)}\n\n{short}"


def _validation_table(seconds, images):
    first = next(iter(seconds))
    rows = [
        (name, f"{images / statistics.median(own):.0f}", f"{times_as_fast(seconds[first], own):.2f}")
        for name, own in seconds.items()
    ]
    return markdown_table(("validation", "images/s per core", "time, decoding alone being 1"), rows)
