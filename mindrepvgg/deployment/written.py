"""An exported file, as its target's files and commands need to know it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mindrepvgg.deployment.graph import GraphOptions, map_shapes
from mindrepvgg.models.preprocessing import Preprocessing
from mindrepvgg.models.variants import Variant


@dataclass(frozen=True)
class Written:
    """An exported file.

    Attributes:
        path: the file.
        options: what it takes and gives.
        metadata: what it says of itself.
        variant: the network's layout.
        channels: of the images.
        image_size: (height, width); that of the checkpoint where the file takes any.
        normalisation: the network's mean and std; None where they are not known.
        soc_version: the Ascend chip, as ATC names it.
    """

    path: Path
    options: GraphOptions
    metadata: dict
    variant: Variant
    channels: int
    image_size: tuple[int, int]
    normalisation: Preprocessing | None = None
    soc_version: str = "Ascend310P3"

    @property
    def outputs(self) -> dict[str, list]:
        """Name -> shape of each output; what is dynamic has a name."""
        if self.variant.features:
            return map_shapes(self.variant, self.options)
        batch = self.options.input_shape(self.channels)[0]
        return {self.options.output: [batch, self.metadata["num_classes"]]}
