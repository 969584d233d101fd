"""Yaml text of people: every fault is one error with its line, found in a moment, whatever the text asks for.

A key given twice is a mistake here; yaml itself would keep the last. Aliases are not read: a few of them, each of which
names the one before several times, unfold to more than any memory holds.
"""

from __future__ import annotations

import re

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, ScalarNode

from mindrepvgg.text import printable, quoted

_MOST_LEVELS = 20  # of lists and mappings within each other
_MOST_VALUES = 2000  # keys, numbers, lists... of the whole text; yaml's parser takes half a second for as many
_LONGEST_NUMBER = 100  # characters; Python takes quadratic time for long numbers, or refuses them


class YamlError(ValueError):
    """Why a text is not read.

    Attributes:
        line: where, counted from 1; None where yaml does not tell.
        problem: what is wrong.
    """

    def __init__(self, line: int | None, problem: str):
        super().__init__(problem if line is None else f"line {line}: {problem}")
        self.line, self.problem = line, problem


def load(content: str | bytes):
    """What yaml text holds.

    Args:
        content: the text; bytes are UTF-8.

    Raises:
        YamlError: it is not yaml, a mapping gives a key twice, a value is not what its tag says, or the text holds an
            alias, a number too long, or too many values or levels.
    """
    try:
        text = content if isinstance(content, str) else content.decode()
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = str(error.problem or error.context)
        if problem.startswith("but "):
            problem = f"{error.context}, {problem}"
        raise YamlError(mark.line + 1 if mark else None, printable(problem, 300)) from None
    except yaml.reader.ReaderError as error:
        problem = f"{quoted(chr(error.character))} is not allowed in yaml"
        raise YamlError(text.count("\n", 0, error.position) + 1, problem) from None
    except UnicodeDecodeError as error:
        raise YamlError(
            error.object.count(b"\n", 0, error.start) + 1, "this is not UTF-8 text, expected yaml"
        ) from None


class _Loader(yaml.SafeLoader):
    def __init__(self, text):
        super().__init__(text)
        self._levels = self._values = 0

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise _fault(f"the alias {quoted(f'*{event.anchor}')} is not read; write its value out", event)
        self._levels += 1
        self._values += 1
        if self._values > _MOST_VALUES:
            raise _fault(f"the text holds more than {_MOST_VALUES} values", self.peek_event())
        if self._levels > _MOST_LEVELS:
            raise _fault(f"more than {_MOST_LEVELS} lists and mappings lie within each other", self.peek_event())
        node = super().compose_node(parent, index)
        self._levels -= 1
        return node

    def construct_object(self, node, deep=False):
        try:
            return super().construct_object(node, deep)
        except (ValueError, ArithmeticError, LookupError, TypeError, AttributeError):
            # What the constructors of yaml's own types raise for text that fits none of their patterns.
            kind = node.tag.rpartition(":")[2]
            raise _fault(f"{quoted(node.value)} is not of yaml's type {quoted(kind)}", node) from None

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value if isinstance(node, MappingNode) else ():
            if not isinstance(key, ScalarNode):
                raise _fault("a list or mapping cannot be a key; write `key: value`", key)
            if key.value in seen:
                raise _fault(f"key {quoted(key.value)} is given twice; keep one", key)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node):
        value = super().construct_scalar(node)
        if re.search("[\0\ud800-\udfff]", value):
            raise _fault(f"{quoted(value)} holds a character that no text and no path can have", node)
        return value

    def construct_undefined(self, node):
        """A tag that yaml's safe types do not have; `=` gets one without being asked."""
        shown = quoted(node.value if node.tag.endswith(":value") else node.tag)
        raise _fault(f"{shown} is not read; write a plain value, or quote it", node)

    def construct_number(self, node):
        """A whole number or a float, by its tag."""
        if len(node.value) > _LONGEST_NUMBER:
            raise _fault(f"the number {quoted(node.value, 40)} has more than {_LONGEST_NUMBER} characters", node)
        if ":" in node.value:
            raise _fault(f"yaml reads {quoted(node.value)} as a number to the base 60; write it without colons", node)
        return _NUMBERS[node.tag](self, node)


_NUMBERS = {
    "tag:yaml.org,2002:int": yaml.SafeLoader.construct_yaml_int,
    "tag:yaml.org,2002:float": yaml.SafeLoader.construct_yaml_float,
}
for _tag in _NUMBERS:
    _Loader.add_constructor(_tag, _Loader.construct_number)
_Loader.add_constructor(None, _Loader.construct_undefined)


def _fault(problem, place):
    """Return yaml's own error at an event or a node."""
    return ConstructorError(None, None, problem, place.start_mark)
