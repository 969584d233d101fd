"""The errors a user can cause. A command prints each as one line and exits with status 2; see `cli.entry`."""

import re


class UserError(Exception):
    """Something the user gave cannot be used; the message says what was wrong, what was expected and what to do.

    Args:
        message: one line. Where a name in it brings line breaks, spaces stand in their place. The middle of a name of
            more than 300 characters is left out.
    """

    def __init__(self, message: str):
        line = " ".join(message.splitlines())
        super().__init__(re.sub(r"\S{301,}", lambda name: f"{name[0][:200]}...{name[0][-97:]}", line))


class RecipeError(UserError):
    """A recipe key is unknown, of the wrong type, or has an impossible value."""


class DataError(UserError):
    """A data set is missing, empty, unreadable, or does not fit the recipe or the checkpoint."""


class UnreadableImageError(DataError):
    """One picture of a data set cannot be read; what then happens is the recipe's `on_bad_image`."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or of another network, form or class count than asked for."""


class FusionError(UserError, ValueError):
    """A network cannot be fused: nothing is there to fuse, a block is not RepVGG's, or its statistics are damaged."""


class EquivalenceError(Exception):
    """Two forms of a network do not compute the same; `report` holds the measured differences.

    Not a `UserError`: the inputs were usable, the result is wrong. Commands exit with status 1.
    """

    def __init__(self, message, report):
        super().__init__(message)
        self.report = report


class TrainingError(UserError):
    """A run cannot start, resume or go on: its folder is taken, its checkpoint does not fit, or the loss diverged."""
