"""What a check of a data set found, for programs and for people."""

from __future__ import annotations

import dataclasses
import os

from mindrepvgg.files import atomic_write
from mindrepvgg.text import counted, listed, printable

USUAL_SIDE = 224  # pixels that networks of this family are trained on; smaller pictures are enlarged
_NAMES_SHOWN = 5
_LONGEST_LINE = 50_000  # characters; some paths


@dataclasses.dataclass(frozen=True)
class DataReport:
    """What was found; all parts are plain types, for JSON.

    Attributes:
        data_dir, dataset: what was looked at.
        splits: figures by split.
        problems: what `open_source` refuses, and folders that cannot be listed.
        unreadable: file, split, class and reason of each.
        duplicates: groups of files with the same bytes, and whether they are of several classes (two_classes) or
            splits (two_splits).
        wrong_suffix: files of another format than their name's suffix says, which readers do not mind.
        missing_classes: by split, the classes that another split has.
    """

    data_dir: str
    dataset: str
    splits: dict
    problems: list[str]
    unreadable: list[dict]
    duplicates: list[dict]
    wrong_suffix: list[dict]
    missing_classes: dict

    @property
    def passed(self) -> bool:
        """Whether training would meet nothing bad: no unreadable picture, none under two classes, no problem."""
        return not (self.problems or self.unreadable or any(group["two_classes"] for group in self.duplicates))

    def to_dict(self) -> dict:
        """Plain types, for JSON."""
        return {"passed": self.passed, **vars(self)}

    def format(self) -> str:
        """A summary for people: the first few of everything."""
        lines = []
        for name, facts in self.splits.items():
            lines += _format_split(name, facts)
        for name, missing in self.missing_classes.items():
            lines += _titled(f"classes missing in {name}", [repr(name) for name in missing])
        lines += _titled("problems", self.problems)
        lines += _titled("unreadable pictures", [f"{entry['file']}: {entry['reason']}" for entry in self.unreadable])
        two_classes, leaked, copies = self._sorted_duplicates()
        lines += _titled("pictures under two classes", two_classes)
        lines += _titled("pictures in two splits, so that validation sees what was trained on", leaked)
        lines += _titled("pictures more than once in a class", copies)
        wrong = [f"{entry['file']} is {entry['format']}" for entry in self.wrong_suffix]
        lines += _titled("files of another format than their suffix says (read all the same)", wrong)
        lines.append("nothing bad was found" if self.passed else "the data set needs repair")
        # A file's name may hold bytes that are no text, and control characters.
        return "\n".join(printable(line, _LONGEST_LINE) for line in "\n".join(lines).split("\n"))

    def _sorted_duplicates(self):
        """The groups in words: those of two classes, of two splits, and the others."""
        shown = [(_words_of_group(group["files"]), group) for group in self.duplicates]
        return (
            [text for text, group in shown if group["two_classes"]],
            [text for text, group in shown if group["two_splits"]],
            [text for text, group in shown if not (group["two_classes"] or group["two_splits"])],
        )


def write_bad_list(path, report: DataReport):
    """Write the unreadable files' names, one a line, for `xargs` and its like; atomically.

    Files whose name holds a line break are left out: as two lines they would name others.
    """
    with atomic_write(path) as stream:
        for entry in report.unreadable:
            name = os.fsencode(entry["file"])
            if b"\n" not in name:
                stream.write(name + b"\n")


def _format_split(name, facts):
    """Lines about a split."""
    per_class = facts["pictures_per_class"]
    sizes = f" of {_words(per_class)}" if per_class else ""
    lines = [f"{name}: {counted(facts['pictures'], 'picture')} in {counted(facts['classes'], 'class')}{sizes}"]
    lines += [f"  {', '.join(f'{count} {kind}' for kind, count in facts['kinds'].items())}"] if facts["kinds"] else []
    if facts["height"]:
        small = facts[f"side_below_{USUAL_SIDE}"]
        lines.append(
            f"  height {_words(facts['height'])}, width {_words(facts['width'])}; {small} with a side below "
            f"{USUAL_SIDE}"
        )
    if facts["ignored_files"]:
        kinds = ", ".join(f"{count} {kind}" for kind, count in facts["ignored_files"].items())
        lines.append(f"  not used, as they are no pictures: {kinds}")
    if facts["outside_of_classes"]:
        lines.append(f"  not used, as outside of the class folders: {counted(facts['outside_of_classes'], 'picture')}")
    for key, words in (("empty_classes", "no picture"), ("classes_without_readable", "no readable picture")):
        lines += _titled(f"  classes with {words}", [repr(name) for name in facts[key]], indent=" " * 4)
    return lines


def _words(spread):
    low, high = spread["min"], spread["max"]
    return str(low) if low == high else f"{low} to {high} (median {spread['median']:g})"


def _words_of_group(files):
    """The files of the same bytes in one line, the first few."""
    return listed([f"{file['file']} ({file['split']}, {file['class']})" for file in files], _NAMES_SHOWN, " = ")


def _titled(title, entries, indent="  "):
    """A title with the number of entries, and below it the first of them; nothing for none."""
    separator = f"\n{indent}"
    return [f"{title}: {len(entries)}{separator}{listed(entries, _NAMES_SHOWN, separator)}"] if entries else []
