"""Other projects' RepVGG checkpoints: unwrap a file's content, recognise the network by it, rename both ways.

found = recognise(unwrap(read_torch_file(path)).weights)      # any dialect -> our names
arrays = from_house(found.arrays, "timm", found.variant)      # our names -> any dialect that has the network
"""

from .names import DIALECTS, Dialect, find_dialect
from .recognise import Recognised, recognise
from .renaming import from_house, to_house
from .wrappers import Unwrapped, unwrap

__all__ = [
    "DIALECTS",
    "Dialect",
    "Recognised",
    "Unwrapped",
    "find_dialect",
    "from_house",
    "recognise",
    "to_house",
    "unwrap",
]
