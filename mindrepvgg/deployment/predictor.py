"""Classes of pictures in memory, for services and programs that ask again and again."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from mindrepvgg.data.source import ImageFiles
from mindrepvgg.deployment.engine import is_exported
from mindrepvgg.deployment.exported import Computing
from mindrepvgg.errors import UserError
from mindrepvgg.evaluation.predictions import Prediction, class_names_of, loader_for, predictions


class Predictor:
    """An exported file, opened once. It prepares pictures and names classes as `api.predict` does.

    Threads may call it at the same time; under onnxruntime and OpenVINO they then compute at the same time.

    Args:
        path: an exported file.
        topk: the most probable classes to tell of each picture.
        class_names: a file of names, see `api.predict`; None: those that the exported file knows.
        engine, num_threads, precision: see `Computing`; None: the engine's choice.

    Raises:
        UserError: file and options do not go together, or a package is missing.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        topk: int = 5,
        class_names: str | os.PathLike | None = None,
        engine: str | None = None,
        num_threads: int | None = None,
        precision: str = "float32",
    ):
        if not is_exported(path):
            raise UserError(f"{path} is no exported file; export it first: mindrepvgg export")
        self._net, _ = Computing.of(path, engine, num_threads, precision).open(path, {})
        self._class_names, self._topk = class_names_of(self._net, class_names), topk

    def __call__(self, pictures: Sequence[tuple[str, bytes]]) -> list[Prediction]:
        """Predict one batch.

        Args:
            pictures: (name, encoded bytes) of each, at least one.

        Returns:
            For each its classes, or an `error` where it cannot be read.
        """
        options = {"batch_size": len(pictures), "num_parallel_workers": 1}
        loader = loader_for(self._net, _InMemory(pictures), options)
        return list(predictions(self._net, loader, self._class_names, self._topk))


class _InMemory(ImageFiles):
    """Pictures in memory, in the place of files; see `Files`."""

    def __init__(self, pictures):
        super().__init__(name for name, _ in pictures)
        self._contents = [np.frombuffer(content, np.uint8) for _, content in pictures]

    def read(self, index):
        return self._contents[index]
