"""What the commands share: an argument parser that answers in one line, and errors turned into exit statuses."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence

from mindrepvgg.errors import EquivalenceError, UserError
from mindrepvgg.text import nearest, printable, quoted

# The machine's refusals: the user can act on them and a traceback would not help. Any other OSError is a bug.
_REFUSALS = frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EIO,
        errno.ESTALE,
        errno.ENOENT,
        errno.ENOMEM,
        errno.EEXIST,
        errno.EISDIR,
        errno.ENOTDIR,
        errno.ENAMETOOLONG,
        errno.ELOOP,
    }
)


_INTERRUPTED = 128 + 2  # as a shell reports SIGINT
_BROKEN_PIPE = 128 + 13  # as a shell reports SIGPIPE
_SMALLER = "free memory, or make the batch, the images or the network smaller"
_LONGEST_MESSAGE = 4000  # characters


class ArgumentParser(argparse.ArgumentParser):
    """An argparse parser whose errors are one line with status 2, and which names the nearest option.

    Options must be given in full: a prefix of one key is too often another key, as `mode` is of `model`.
    """

    def __init__(self, verb: str | None = None, **options):
        """As argparse's; `verb`: of the command `mindrepvgg`, None for a program of its own."""
        if verb is not None:
            options["prog"] = f"mindrepvgg {verb}"
        # The examples in a description keep their lines.
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(allow_abbrev=False, formatter_class=formatter, **options)
        self._takes_checkpoint = False

    def add_checkpoint(self, metavar: str, text: str):
        """Add the positional argument `ckpt_path`, which may be given as `--ckpt_path FILE` as well."""
        self.add_argument("ckpt_path", metavar=metavar, help=text)
        # For --help and for suggestions: `parse_args` takes the option away before argparse reads it.
        self.add_argument("--ckpt_path", metavar="FILE", help=f"{metavar}, by name")
        self._takes_checkpoint = True

    def parse_args(self, args=None, namespace=None):
        """As argparse's, but of arguments left over only the first is reported, with the nearest option."""
        args = list(sys.argv[1:] if args is None else args)
        if self._takes_checkpoint:
            args = _checkpoint_first(args)
        namespace, left_over = self.parse_known_intermixed_args(args, namespace)
        if left_over:
            self.error(self._describe(left_over[0]))
        return namespace

    def error(self, message):
        """Print one line and exit with status 2."""
        self.exit(2, f"error: {_one_line(message)}\n")

    def _describe(self, argument: str) -> str:
        """Why the argument is refused."""
        if not argument.startswith("-"):
            takes_recipe = any("--config" in action.option_strings for action in self._actions)
            hint = f"did you mean -c {printable(argument)}?" if takes_recipe else "--help shows the usage"
            return f"unexpected argument {quoted(argument)}; {hint}"
        option = argument.split("=")[0]
        # The dashed spellings are hidden from --help and must not be suggested.
        visible = (action for action in self._actions if action.help is not argparse.SUPPRESS)
        known = [name[2:] for action in visible for name in action.option_strings if name.startswith("--")]
        near = nearest(option.lstrip("-"), known)
        hint = f"did you mean --{near}?" if near else "--help lists the options"
        return f"unknown option {option}; {hint}"


def _checkpoint_first(args: list[str]) -> list[str]:
    """The arguments with `--ckpt_path FILE` replaced by FILE in front of them."""
    for index, argument in enumerate(args):
        name, equals, value = argument.partition("=")
        if name in ("--ckpt_path", "--ckpt-path"):
            rest = args[index + 1 :]
            if equals:
                return [value, *args[:index], *rest]
            if rest:
                return [rest[0], *args[:index], *rest[1:]]
    return args


def run(main: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None) -> int:
    """Call `main(argv)` and give the process's exit status: main's own (None: 0), or that of its error.

    UserError and the machine's refusals (no permission, no space, no memory, a broken disk): one line on stderr, 2;
    a package that is missing: one line, 2; EquivalenceError: one line, 1; a pipe whose reader has gone: 141, without a
    word; Ctrl-C: 130; argparse's exits: their own.
    Other exceptions are bugs and propagate.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler and _in_main_thread():
        signal.signal(signal.SIGINT, _interrupt)
    try:
        status = main(argv) or 0
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Whoever reads the output has seen enough, as `head` does; what is left to flush at the end goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except UserError as error:
        return _fail(2, str(error))
    except EquivalenceError as error:
        return _fail(1, str(error))
    except KeyboardInterrupt:
        return _fail(_INTERRUPTED, "interrupted")
    except MemoryError as error:
        return _fail(2, f"not enough memory{f': {error}' if str(error) else ''}; {_SMALLER}")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("mindrepvgg"):
            raise
        hint = "pip install . in mindrepvgg's checkout brings it (Python 3.10-3.12)"
        return _fail(2, f"the package {error.name} is not installed; {hint}")
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        place = f"{printable(error.filename, 300)}: " if error.filename else ""
        return _fail(2, f"{place}{error.strerror}")


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _interrupt(number, frame):
    """On Ctrl-C as Python does, but while MindSpore is imported end at once: its libraries crash when they are cut."""
    specification = getattr(sys.modules.get("mindspore"), "__spec__", None)
    if getattr(specification, "_initializing", False):
        os._exit(_fail(_INTERRUPTED, "interrupted"))
    signal.default_int_handler(number, frame)


def _fail(status: int, message: str) -> int:
    """Print the message as one line on stderr and give the status back."""
    print(f"error: {_one_line(message)}", file=sys.stderr)
    return status


def _one_line(message: str) -> str:
    """The message on one line, without control characters of a file's name; argparse quotes arguments in full."""
    return printable(" ".join(message.split()), _LONGEST_MESSAGE)
