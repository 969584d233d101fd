"""List the released weights that are known by name, or download some.

    mindrepvgg weights
    mindrepvgg weights repvgg_a1 timm/repvgg_b1
    mindrepvgg train --pretrained repvgg_a1 --data_dir photos --num_classes 20

What is downloaded is kept as a checkpoint of this package. A further call finds it and prints where it is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from mindrepvgg.cli import options
from mindrepvgg.cli.entry import ArgumentParser
from mindrepvgg.errors import UserError
from mindrepvgg.text import quoted, table
from mindrepvgg.weights import cache, released


def main(argv: Sequence[str] | None = None) -> int:
    """List, or download and print the files' paths."""
    parser = ArgumentParser("weights", description=__doc__)
    parser.add_argument("names", metavar="NAME", nargs="*", help="repvgg_a1, timm/repvgg_a1 or an address: download it")
    options.add_json(parser)
    arguments = parser.parse_args(argv)
    if not arguments.names:
        print(json.dumps(_facts()) if arguments.json else _listing())
        return 0
    for name in arguments.names:  # a wrong name is told before the first download
        if not cache.is_address(name) and released.find_released(name) is None:
            raise UserError(f"{quoted(name)} is no name of weights; mindrepvgg weights lists them")

    from mindrepvgg.weights.load import local_file

    files = {name: str(local_file(name)[0]) for name in arguments.names}
    print(json.dumps(files) if arguments.json else "\n".join(files.values()))
    return 0


def _facts() -> list[dict]:
    """What is known of each file, the default of each network first."""
    return [
        {
            "name": item.name,
            "default": item is released.released_of(item.model)[0],
            "top1": item.top1,
            "image_size": item.image_size,
            "form": "train",
            "digest": item.digest,
            "address": item.mirrored(),
            "note": item.note,
            "file": str(path) if (path := cache.sealed_file(item)).exists() else None,
        }
        for model in released.AUTHORS_TOP1
        for item in released.released_of(model)
    ]


def _listing() -> str:
    """The same for people."""
    digests = {source.name: source.digest for source in released.SOURCES}
    rows: list[tuple] = [("name", "default", "top-1", "at", "form", "digest", "here")]
    for fact in _facts():
        digest = f"SHA-256 {fact['digest']}..." if fact["digest"] else digests[fact["name"].partition("/")[0]]
        marks = ("yes" if fact["default"] else "", f"{fact['top1']:.2f}", fact["image_size"], fact["form"])
        rows.append((fact["name"], *marks, digest, "yes" if fact["file"] else ""))
    return "\n".join(
        [
            table(rows, align="<<>><<<", rules=[1]),
            "",
            "The name of a network alone means its default. top-1: as the source publishes it, on ImageNet.",
            *(f"{source.name}: {source.note}." for source in released.SOURCES),
            *(f"{item.name}: {item.note}." for item in released.RELEASED if item.note),
            f"RepVGGplus-L2pse and the authors' own files: {released.AUTHORS}, with a browser.",
            f"Kept in {cache.cache_folder() / 'weights'}; {cache.CACHE}=FOLDER moves the cache.",
            f"{released.MIRROR}=ADDRESS names a mirror; HF_ENDPOINT one for timm's files.",
        ]
    )
