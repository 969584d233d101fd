"""One bar over all the work of quantising, which tells the time that is left."""

from __future__ import annotations

import sys

from tqdm import tqdm

# What running a picture as INT8 takes of the time that it takes in float, about.
INT8_SHARE = 0.35

_FORMAT = "{desc} {percentage:3.0f}% |{bar}| {elapsed}, about {remaining} left"


class Progress:
    """Counts pictures that were run through the float network. As INT8 a picture counts less.

    Args:
        show: draw a bar, if the standard error is a terminal.
    """

    def __init__(self, show: bool = False):
        self._bar = tqdm(
            total=0, leave=False, bar_format=_FORMAT, disable=not (show and sys.stderr.isatty()), file=sys.stderr
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._bar.close()

    def expect(self, pictures: float):
        """There is more to do, in pictures."""
        self._bar.total += pictures
        self._bar.refresh()

    def phase(self, text: str):
        """What is done now."""
        self._bar.set_description_str(text)

    def step(self, pictures: float):
        """So many pictures were run."""
        # What was not expected makes the bar longer, not fuller than full.
        self._bar.total = max(self._bar.total, self._bar.n + pictures)
        self._bar.update(pictures)
