"""Yaml text, in which a key given twice is a mistake; yaml itself would keep the last."""

from __future__ import annotations

import yaml


def load(text: str):
    """What yaml text holds.

    Raises:
        yaml.YAMLError, ValueError: it is not yaml, or a mapping gives a key twice.
    """
    return yaml.load(text, _UniqueKeyLoader)


class _UniqueKeyLoader(yaml.SafeLoader):
    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                problem = f"key {name!r} is given twice; keep one"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)
