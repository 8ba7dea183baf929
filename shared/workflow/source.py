"""YAML text to plain data that remembers where everything stood.

Built on the events of PyYAML's C parser, not on its constructor: that gives positions, lets duplicate keys be refused, and
stops a hostile file after a bounded number of nodes, levels and alias expansions (T51). Scalars stay as they were written
(`Scalar`, a `str`): `no`, `1.10` and `0777` mean what the reader sees, and each field of the model decides what it wants.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from shared.workflow.faults import Fault, shorten

MAX_BYTES = 256 * 1024
MAX_DEPTH = 32
MAX_NODES = 20_000
"""Values in a file, counted after aliases are expanded."""

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_BREAK = re.compile(r"\r\n|[\n\r\x85\u2028\u2029]")
"""What YAML 1.1 takes for the end of a line."""
_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE = frozenset({"true", "True", "TRUE"})
_FALSE = frozenset({"false", "False", "FALSE"})
_INT = re.compile(r"[-+]?[0-9]{1,18}\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]{1,18}(\.[0-9]*)?)([eE][-+]?[0-9]{1,3})?\Z")
_TAGS = frozenset(f"tag:yaml.org,2002:{name}" for name in ("str", "map", "seq", "int", "float", "bool", "null")) | {"!"}


class Scalar(str):
    """A scalar as written. `plain`: without quotes, so that `typed` may see a number or a truth value in it."""

    __slots__ = ("plain",)
    plain: bool

    @classmethod
    def of(cls, text: str, *, plain: bool) -> Scalar:
        scalar = cls(text)
        scalar.plain = plain
        return scalar

    @property
    def typed(self) -> str | int | float | bool:
        """The value by the core rules of YAML 1.2 (`no` stays a text)."""
        text = str(self)
        if not self.plain:
            return text
        if text in _TRUE or text in _FALSE:
            return text in _TRUE
        if _INT.match(text):
            return int(text)
        return float(text) if _FLOAT.match(text) else text


@dataclass(slots=True)
class Node:
    """One value of the file. Exactly one of the three forms; `start` and `end` are offsets into the text."""

    start: int
    end: int
    scalar: Scalar | None = None
    items: list[Node] | None = None
    entries: list[tuple[Node, Node]] | None = None
    null: bool = False
    size: int = 1
    """Number of values in it, aliases expanded."""

    @property
    def kind(self) -> str:
        """What people call it."""
        if self.null:
            return "nothing"
        if self.items is not None:
            return "a list"
        return "a map" if self.entries is not None else "a text"


class SyntaxFaultsError(Exception):
    """The text is no usable YAML; carries the faults."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__(f"{len(faults)} faults")
        self.faults = list(faults)


@dataclass
class Source:
    """The text of one file, and how to point at places in it."""

    file: str
    text: str
    _starts: list[int] = field(init=False)
    _ends: list[int] = field(init=False)

    def __post_init__(self) -> None:
        breaks = list(_BREAK.finditer(self.text))
        self._starts = [0, *(found.end() for found in breaks)]
        self._ends = [*(found.start() for found in breaks), len(self.text)]
        if len(self._starts) > 1 and self._starts[-1] == len(self.text):  # a final newline begins no line of its own
            self._starts.pop()
            self._ends.pop()

    def fault(self, at: int, message: str, **more: Any) -> Fault:
        """A fault at offset `at` (clamped into the text)."""
        at = max(0, min(at, len(self.text)))
        row = max(0, bisect_right(self._starts, at) - 1)
        column = min(at, self._ends[row]) - self._starts[row]
        line = self.text[self._starts[row] : self._ends[row]]
        return Fault(self.file, row + 1, column + 1, message=message, source_line=line, **{"path": "", **more})

    def line_of(self, at: int) -> int:
        """Line number, from 1."""
        return max(1, bisect_right(self._starts, at))


@dataclass
class Document:
    """A parsed file: its data, and a way from a path in the data back to the text."""

    source: Source
    root: Node
    faults: list[Fault]
    """Duplicate keys and the like: found on the way, the rest of the file is still there."""

    def data(self) -> Any:
        """Maps, lists, `Scalar` and None. Aliased parts are the same object."""
        return _data(self.root, {})

    def find(self, path: Sequence[str | int]) -> tuple[Node, Node | None, int]:
        """The deepest value on `path` that the file has, its key if it is in a map, and how many steps led there."""
        node, key = self.root, None
        for step, name in enumerate(path):
            found = _child(node, name)
            if found is None:
                return node, key, step
            key, node = found
        return node, key, len(path)

    def name_path(self, path: Sequence[str | int]) -> str:
        """`stages.test.jobs.lint.needs[0]`: list items that have a name are called by it."""
        node: Node | None = self.root
        words = ""
        for name in path:
            found = _child(node, name) if node is not None else None
            node = found[1] if found else None
            label = _entry_text(node, "name") if node is not None and isinstance(name, int) else ""
            if isinstance(name, int) and not label:
                words += f"[{name}]"
            else:
                words += ("." if words else "") + shorten(label or name)
        return words

    def inside(self, node: Node, offset: int, needle: str = "") -> int:
        """Where in the file the character `offset` of a scalar's text stands (its start if that cannot be told)."""
        if node.scalar is None:
            return node.start
        text, written = str(node.scalar), self.source.text[node.start : node.end]
        whole = written.find(text)
        if whole >= 0 and text:
            return node.start + whole + min(offset, len(text))
        line_start = text.rfind("\n", 0, offset) + 1
        line = text[line_start : (text.find("\n", line_start) + 1 or len(text) + 1) - 1]
        place = written.find(line) if line.strip() else -1
        if place >= 0:
            return node.start + place + offset - line_start
        place = written.find(needle) if needle else -1
        return node.start + max(place, 0)


def read(text: str, filename: str) -> Document:
    """Parse one YAML document. Raises SyntaxFaultsError for what is not YAML, or more than the limits allow."""
    source = Source(filename, text)
    loader = _Loader(text)
    try:
        composer = _Composer(source, loader)
        return Document(source, composer.document(), composer.faults)
    except yaml.MarkedYAMLError as error:
        raise SyntaxFaultsError([_marked_fault(source, error)]) from None
    except yaml.reader.ReaderError as error:
        message = f"the character U+{error.character:04X} is not allowed in YAML"
        raise SyntaxFaultsError([source.fault(error.position, message)]) from None
    finally:
        loader.dispose()


class _Composer:
    """Events to nodes, within the limits."""

    def __init__(self, source: Source, loader: Any) -> None:
        self.source = source
        self.faults: list[Fault] = []
        self._loader = loader
        self._anchors: dict[str, Node] = {}
        self._open: set[str] = set()
        self._nodes = 0
        self._expanded = 0

    def document(self) -> Node:
        self._loader.get_event()  # the stream starts
        if self._loader.check_event(yaml.StreamEndEvent):
            raise SyntaxFaultsError(
                [self.source.fault(0, "the file is empty", expected="a map with `name` and `stages`")]
            )
        self._loader.get_event()  # the document starts
        root = self._node(self._loader.get_event(), 1)
        self._loader.get_event()  # the document ends
        if not self._loader.check_event(yaml.StreamEndEvent):
            second = self._loader.get_event().start_mark.index
            self._stop(second, "a second document begins here", expected="one workflow in a file")
        return root

    def _stop(self, at: int, message: str, **more: Any) -> None:
        raise SyntaxFaultsError([*self.faults, self.source.fault(at, message, **more)])

    def _note(self, at: int, message: str, **more: Any) -> None:
        if len(self.faults) < 100:
            self.faults.append(self.source.fault(at, message, **more))

    def _node(self, event: Any, depth: int) -> Node:
        start = event.start_mark.index
        if isinstance(event, yaml.AliasEvent):
            return self._alias(str(event.anchor), start)
        self._nodes += 1
        self._count(start, 1)
        if depth > MAX_DEPTH:
            self._stop(start, f"values are nested more than {MAX_DEPTH} levels deep")
        if event.tag is not None and event.tag not in _TAGS:
            self._note(start, f"the tag `{shorten(event.tag)}` has no meaning here", expected="plain values")
        if event.anchor:
            self._open.add(event.anchor)
        if isinstance(event, yaml.ScalarEvent):
            node = _scalar_node(event)
        elif isinstance(event, yaml.SequenceStartEvent):
            node = self._sequence(start, depth)
        else:
            node = self._mapping(start, depth)
        if event.anchor:
            self._open.discard(event.anchor)
            self._anchors[event.anchor] = node
        return node

    def _alias(self, name: str, start: int) -> Node:
        if name in self._open:
            self._stop(start, f"the alias `*{shorten(name)}` stands inside the very value that it names")
        if name not in self._anchors:
            self._stop(start, f"no anchor `&{shorten(name)}` stands before this alias")
        node = self._anchors[name]
        self._count(start, node.size)
        return node

    def _count(self, at: int, more: int) -> None:
        self._expanded += more
        if self._expanded > MAX_NODES:
            self._stop(at, f"the file holds more than {MAX_NODES} values (aliases counted each time)")

    def _sequence(self, start: int, depth: int) -> Node:
        items: list[Node] = []
        while not self._loader.check_event(yaml.SequenceEndEvent):
            items.append(self._node(self._loader.get_event(), depth + 1))
        end = self._loader.get_event().end_mark.index
        return Node(start, end, items=items, size=1 + sum(item.size for item in items))

    def _mapping(self, start: int, depth: int) -> Node:
        entries: list[tuple[Node, Node]] = []
        merged: list[tuple[Node, Node]] = []
        first: dict[str, int] = {}
        while not self._loader.check_event(yaml.MappingEndEvent):
            key = self._node(self._loader.get_event(), depth + 1)
            value = self._node(self._loader.get_event(), depth + 1)
            if key.scalar is None:
                self._note(key.start, f"{key.kind} cannot be a key", expected="a word before the `:`")
                continue
            name = str(key.scalar)
            if name == "<<" and key.scalar.plain:
                merged += self._merged(value)
            elif name in first:
                line = self.source.line_of(first[name])
                self._note(key.start, f"the key `{shorten(name)}` stands here twice (first in line {line})")
            else:
                first[name] = key.start
                entries.append((key, value))
        end = self._loader.get_event().end_mark.index
        for key, value in merged:
            if str(key.scalar) not in first:
                first[str(key.scalar)] = key.start
                entries.append((key, value))
        return Node(start, end, entries=entries, size=1 + sum(1 + value.size for _, value in entries))

    def _merged(self, value: Node) -> list[tuple[Node, Node]]:
        """Entries that `<<: *anchor` (or a list of aliases) brings in; earlier ones win."""
        sources = value.items if value.items is not None else [value]
        found: list[tuple[Node, Node]] = []
        for part in sources:
            if part.entries is None:
                self._note(part.start, f"`<<` merges maps, but this is {part.kind}", expected="an alias of a map")
            else:
                self._count(part.start, part.size)
                found += part.entries
        return found


def _scalar_node(event: Any) -> Node:
    plain = bool(event.implicit[0])
    null = plain and event.value in _NULL
    return Node(event.start_mark.index, event.end_mark.index, scalar=Scalar.of(event.value, plain=plain), null=null)


def _data(node: Node, done: dict[int, Any]) -> Any:
    known = done.get(id(node))
    if known is not None:
        return known
    if node.items is not None:
        value: Any = [_data(item, done) for item in node.items]
    elif node.entries is not None:
        value = {str(key.scalar): _data(item, done) for key, item in node.entries}
    else:
        value = None if node.null else node.scalar
    done[id(node)] = value
    return value


def _child(node: Node, name: str | int) -> tuple[Node | None, Node] | None:
    if node.entries is not None:
        if isinstance(name, int):  # the model's list was written as a map
            return node.entries[name] if name < len(node.entries) else None
        return next(((key, value) for key, value in node.entries if key.scalar == name), None)
    if node.items is not None:
        if isinstance(name, int):
            return (None, node.items[name]) if name < len(node.items) else None
        return next(((None, item) for item in node.items if _entry_text(item, "name") == name), None)
    return None


def _entry_text(node: Node, name: str) -> str:
    for key, value in node.entries or ():
        if key.scalar == name and value.scalar is not None:
            return str(value.scalar)
    return ""


def typed(value: Any) -> Any:
    """Data with every plain scalar as YAML means it: for free-form maps."""
    if isinstance(value, Scalar):
        return value.typed
    if isinstance(value, dict):
        return {str(key): typed(item) for key, item in value.items()}
    return [typed(item) for item in value] if isinstance(value, list) else value


_PROBLEMS: tuple[tuple[str, str, str], ...] = (
    (
        "mapping values are not allowed",
        "a `:` cannot stand here",
        "quotes around a text that holds `: `, or a new line",
    ),
    ("could not find expected ':'", "this line should be a `key: value` pair", "a `:` after the key"),
    ("did not find expected key", "this line does not fit the map around it", "the same indentation as its neighbours"),
    (
        "did not find expected '-' indicator",
        "this line does not fit the list around it",
        "an item that starts with `- `",
    ),
    ("did not find expected ',' or ']'", "this list in `[ ]` goes wrong here", "`,` between items, `]` at its end"),
    ("did not find expected ',' or '}'", "this map in `{ }` goes wrong here", "`,` between entries, `}` at its end"),
    ("found unexpected end of stream", "the file ends inside a quoted text", "a closing quote"),
    ("did not find expected node content", "a value is missing here", "a value, or the bracket that closes the list"),
    ("block sequence entries are not allowed", "a list cannot begin here", "`- ` on a line of its own"),
    (
        "found unknown escape character",
        "this escape has no meaning in a text in double quotes",
        "single quotes, or `\\\\`",
    ),
)


def _marked_fault(source: Source, error: yaml.MarkedYAMLError) -> Fault:
    mark: Any = error.problem_mark or error.context_mark
    at = mark.index if mark is not None else 0
    problem = error.problem or "not valid YAML"
    char = source.text[at : at + 1]
    if "cannot start any token" in problem:
        if char == "\t":
            return source.fault(at, "a tab cannot be used for indentation", expected="spaces")
        return source.fault(at, f"a text cannot begin with `{char}`", expected="quotes around the text")
    for start, message, expected in _PROBLEMS:
        if problem.startswith(start):
            return source.fault(at, message, expected=expected)
    return source.fault(at, f"not valid YAML: {problem}")


def walk_texts(value: Any) -> Iterator[str]:
    """Every text in plain data, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from walk_texts(key)
            yield from walk_texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from walk_texts(item)
