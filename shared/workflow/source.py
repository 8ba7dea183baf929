"""YAML text to plain data that remembers where everything stood.

Built on the events of PyYAML's C parser, not on its constructor: that gives positions, lets duplicate keys be refused, and
stops a hostile file after a bounded number of nodes, levels and alias expansions (T51). Scalars stay as they were written
(`Scalar`, a `str`): `no`, `1.10` and `0777` mean what the reader sees, and each field of the model decides what it wants.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from shared.workflow.faults import Fault, excerpt, shorten

MAX_BYTES = 256 * 1024
MAX_DEPTH = 32
MAX_NODES = 10_000
"""Values in a file, counted after aliases are expanded."""
_MAX_FAULTS = 50

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SEQUENCE_END: Any = yaml.SequenceEndEvent
_MAPPING_END: Any = yaml.MappingEndEvent
_BREAKS = ("\n", "\r", "\x85", "\u2028", "\u2029")
"""What YAML 1.1 takes for the end of a line (and `\\r\\n`, as one)."""
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


@dataclass(frozen=True, slots=True)
class Source:
    """The text of one file, and how to point at places in it.

    Lines are looked up when a fault needs them: a table of all lines would cost more than the rest of a hostile file.
    """

    file: str
    text: str

    def fault(self, at: int, message: str, **more: Any) -> Fault:
        """A fault at offset `at`; one behind the last line break belongs to the line before it."""
        at = max(0, min(at, len(self.text)))
        if at == len(self.text) and self.text.endswith(_BREAKS):
            at -= 2 if self.text.endswith("\r\n") else 1
        if self.text[at - 1 : at + 1] == "\r\n":
            at -= 1
        start = 1 + max(self.text.rfind(char, 0, at) for char in _BREAKS)
        found = [end for char in _BREAKS if (end := self.text.find(char, at)) >= 0]
        line = self.text[start : min(found, default=len(self.text))]
        shown, caret = excerpt(line, at - start)
        more = {"path": "", "source_line": shown, "caret": caret, **more}
        return Fault(self.file, self.line_of(at), at - start + 1, message=message, **more)

    def line_of(self, at: int) -> int:
        """Line number, from 1."""
        count = self.text.count
        return 1 + sum(count(char, 0, at) for char in _BREAKS) - count("\r\n", 0, at)


@dataclass
class Document:
    """A parsed file: its data, and a way from a path in the data back to the text."""

    source: Source
    root: Node
    faults: list[Fault]
    """Duplicate keys and the like: found on the way, the rest of the file is still there."""
    _indexes: dict[int, dict[str, tuple[Node | None, Node]]] = field(default_factory=dict)

    def data(self) -> Any:
        """Maps, lists, `Scalar` and None. Aliased parts are the same object."""
        return _data(self.root, {})

    def find(self, path: Sequence[str | int]) -> tuple[Node, Node | None, int]:
        """The deepest value on `path` that the file has, its key if it is in a map, and how many steps led there."""
        node, key = self.root, None
        for step, name in enumerate(path):
            found = self._child(node, name)
            if found is None:
                return node, key, step
            key, node = found
        return node, key, len(path)

    def _child(self, node: Node, name: str | int) -> tuple[Node | None, Node] | None:
        """Key and value of one step; a list of {name: …} can be entered by name, a map by number."""
        if isinstance(name, int):
            if node.entries is not None:
                return node.entries[name] if name < len(node.entries) else None
            return (None, node.items[name]) if node.items is not None and name < len(node.items) else None
        index = self._indexes.get(id(node))
        if index is None:
            index = {str(key.scalar): (key, value) for key, value in node.entries or ()}
            index |= {_entry_text(item, "name"): (None, item) for item in node.items or ()}
            self._indexes[id(node)] = index
        return index.get(name)

    def name_path(self, path: Sequence[str | int]) -> str:
        """`stages.test.jobs.lint.needs[0]`: list items that have a name are called by it."""
        node: Node | None = self.root
        words = ""
        for name in path:
            found = self._child(node, name) if node is not None else None
            node = found[1] if found else None
            label = ""
            if found is not None and isinstance(name, int):
                label = str(found[0].scalar) if found[0] is not None else _entry_text(found[1], "name")
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
        return node.start + _same_word(text, offset, needle, written)


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
        self._next: Any = loader.get_event
        self._anchors: dict[str, Node] = {}
        self._open: set[str] = set()
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
        if len(self.faults) < _MAX_FAULTS:
            self.faults.append(self.source.fault(at, message, **more))

    def _node(self, event: Any, depth: int) -> Node:
        start, kind = event.start_mark.index, event.__class__
        if kind is yaml.AliasEvent:
            return self._alias(str(event.anchor), start)
        self._expanded += 1
        if self._expanded > MAX_NODES:
            self._count(start, 0)
        if depth > MAX_DEPTH:
            self._stop(start, f"values are nested more than {MAX_DEPTH} levels deep")
        if event.tag is not None and event.tag not in _TAGS:
            expected = "quotes around a text that begins with `!`" if event.tag.startswith("!") else "plain values"
            self._note(start, f"the tag `{shorten(event.tag)}` has no meaning here", expected=expected)
        anchor = event.anchor
        if anchor:
            self._open.add(anchor)
        if kind is yaml.ScalarEvent:
            node = _scalar_node(event, start)
        else:
            node = self._sequence(start, depth) if kind is yaml.SequenceStartEvent else self._mapping(start, depth)
        if anchor:
            self._open.discard(anchor)
            self._anchors[anchor] = node
        return node

    def _alias(self, name: str, start: int) -> Node:
        if name in self._open:
            self._stop(start, f"the alias `*{shorten(name)}` stands inside the very value that it names")
        if name not in self._anchors:
            expected = "quotes, if it is a text that begins with `*`"
            self._stop(start, f"no anchor `&{shorten(name)}` stands before this alias", expected=expected)
        node = self._anchors[name]
        self._count(start, node.size)
        return node

    def _count(self, at: int, more: int) -> None:
        self._expanded += more
        if self._expanded > MAX_NODES:
            self._stop(at, f"the file holds more than {MAX_NODES} values (aliases counted each time)")

    def _sequence(self, start: int, depth: int) -> Node:
        items: list[Node] = []
        while (event := self._next()).__class__ is not _SEQUENCE_END:
            items.append(self._node(event, depth + 1))
        return Node(start, event.end_mark.index, items=items, size=1 + sum(item.size for item in items))

    def _mapping(self, start: int, depth: int) -> Node:
        entries: list[tuple[Node, Node]] = []
        merged: list[tuple[Node, Node]] = []
        first: dict[str, int] = {}
        while (event := self._next()).__class__ is not _MAPPING_END:
            key = self._node(event, depth + 1)
            value = self._node(self._next(), depth + 1)
            if key.scalar is None:
                expected = "a word before the `:`, or quotes around a text that begins with a bracket"
                self._note(key.start, f"{key.kind} cannot be a key", expected=expected)
                continue
            name = str(key.scalar)
            if name == "<<" and key.scalar.plain:
                merged += self._merged(value)
            elif name in first:
                if len(self.faults) < _MAX_FAULTS:  # counting lines takes a while
                    line = self.source.line_of(first[name])
                    self._note(key.start, f"the key `{shorten(name)}` stands here twice (first in line {line})")
            else:
                first[name] = key.start
                entries.append((key, value))
        for key, value in merged:
            if str(key.scalar) not in first:
                first[str(key.scalar)] = key.start
                entries.append((key, value))
        return Node(start, event.end_mark.index, entries=entries, size=1 + sum(1 + value.size for _, value in entries))

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


def _scalar_node(event: Any, start: int) -> Node:
    plain = bool(event.implicit[0])
    null = plain and event.value in _NULL
    return Node(start, event.end_mark.index, Scalar.of(event.value, plain=plain), None, None, null)


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


def _same_word(text: str, offset: int, needle: str, written: str) -> int:
    """Folded and escaped texts: where the word at `offset` stands in the text as written; 0 if it is not to be found."""
    word = needle or "".join(text[offset : offset + 100].split(maxsplit=1)[:1])
    if not word:
        return 0
    place = -1
    for _ in range(min(text.count(word, 0, offset), 100) + 1):
        place = written.find(word, place + 1)
    return max(place, 0)


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
        "did not find expected <document start>",
        "this line does not belong to what stands before it",
        "the same indentation as the first line",
    ),
    ("found unexpected ':'", "a `:` cannot stand here", "quotes around a text that holds `:`"),
    ("found a tab character", "a tab cannot be used for indentation", "spaces"),
    ("did not find expected key", "this line does not fit the map around it", "the same indentation as its neighbours"),
    (
        "did not find expected '-' indicator",
        "this line does not fit the list around it",
        "the same indentation as its neighbours, or an item that starts with `- `",
    ),
    ("did not find expected ',' or ']'", "this list in `[ ]` goes wrong here", "`,` between items, `]` at its end"),
    ("did not find expected ',' or '}'", "this map in `{ }` goes wrong here", "`,` between entries, `}` at its end"),
    ("did not find expected node content", "a value is missing here", "a value, or the bracket that closes the list"),
    ("block sequence entries are not allowed", "a list cannot begin here", "`- ` on a line of its own"),
    (
        "did not find expected comment or line break",
        "behind `|` or `>` the line is over",
        "the text on lines of its own below, or in quotes",
    ),
    (
        "found unknown escape character",
        "this escape has no meaning in a text in double quotes",
        "single quotes, or `\\\\`",
    ),
)
_OTHER_MEANINGS = ("while scanning an alias", "while scanning an anchor", "while scanning a tag", "while parsing a tag",
                   "while scanning a directive")  # fmt: skip
"""What `*`, `&`, `!` and `%` begin in YAML."""
_UNSPACED = re.compile(r"[ ]*(?:- +)*(?:(?P<dash>-)(?=[\w\xa0])|[\w-]+(?P<colon>:)(?!//)(?=[^ \t\r\n:]))")


def _marked_fault(source: Source, error: yaml.MarkedYAMLError) -> Fault:
    mark: Any = error.problem_mark or error.context_mark
    at = mark.index if mark is not None else 0
    context_mark: Any = error.context_mark or mark
    began = context_mark.index if context_mark is not None else at
    problem = error.problem or "not valid YAML"
    text, char = source.text, source.text[at : at + 1]
    in_brackets = "expected ',' or" in problem
    if problem.startswith("did not find expected"):
        early = _early_end(source, began if "scanning" in (error.context or "") else at, in_brackets)
        if early is not None:
            return early
    if error.context in _OTHER_MEANINGS:
        message = f"a text that begins with `{text[began : began + 1]}` needs quotes"
        return source.fault(began, message, expected="quotes around the text")
    if "cannot start any token" in problem:
        if char == "\t":
            return source.fault(at, "a tab cannot be used for indentation", expected="spaces")
        return source.fault(at, f"a text cannot begin with `{char}`", expected="quotes around the text")
    if problem.startswith("mapping values are not allowed"):
        return _odd_colon(source, at)
    if problem.startswith("could not find expected ':'"):
        return _no_pair(source, began)
    if problem.startswith("found unexpected end of stream"):
        return source.fault(began, "the file ends inside a quoted text, opened here", expected="a closing quote")
    for start, message, expected in _PROBLEMS:
        if problem.startswith(start):
            if in_brackets and (line := source.line_of(at)) != source.line_of(began):
                at, message = began, message.replace("goes wrong here", f"is opened here and goes wrong in line {line}")
            return source.fault(at, message, expected=expected)
    return source.fault(at, f"not valid YAML: {problem}")


def _early_end(source: Source, at: int, in_brackets: bool) -> Fault | None:
    """Something has ended before it should: a text in quotes, or one without; or a bracket closes too much."""
    text, char = source.text, source.text[at : at + 1]
    last = text[text.rfind("\n", 0, at) + 1 : at].rstrip(" ")[-1:]
    if text[at - 1 : at + 1] == "${":
        return source.fault(at - 1, "inside `{ }` or `[ ]` a reference needs quotes", expected='"${{ … }}"')
    if last in {'"', "'"} and char not in {"\n", "\r", ""}:
        inside = '\\"' if last == '"' else "''"
        expected = f"quotes around the whole text, `{inside}` for each `{last}` in it; or a quote is missing further up"
        return source.fault(at, "the text in quotes has ended before this", expected=expected)
    if in_brackets:
        return None
    if char in {"]", "}"}:
        return source.fault(at, f"this `{char}` closes nothing", expected="quotes, if it belongs to a text")
    if last in {"]", "}"} and char not in {"\n", "\r", ""}:
        expected = f"quotes around a text that begins with `{'[' if last == ']' else '{'}`"
        return source.fault(at, f"what the `{last}` closes has ended before this", expected=expected)
    return None


def _odd_colon(source: Source, at: int) -> Fault:
    """A `:` where no key is: inside a text of the same line, or because the line above goes on into this one."""
    text = source.text
    start = text.rfind("\n", 0, at) + 1
    above, line = _line_above(text, start)
    if not line or re.search(r":\s", text[start:at]):
        expected = "quotes around a text that holds `: `, or a new line"
        return source.fault(at, "a `:` cannot stand here", expected=expected)
    here = at - len(text[start:at].lstrip(" -"))
    indented = line.lstrip(" -")
    if _UNSPACED.match(line) or (len(line) - len(indented) == here - start and not re.search(r":(\s|$)", line)):
        return _no_pair(source, above)
    message = f"this line is indented differently from line {source.line_of(above)}"
    return source.fault(here, message, expected="the same indentation, or quotes around a text that holds `: `")


def _no_pair(source: Source, at: int) -> Fault:
    """The line at `at` should be a key and its value."""
    start = source.text.rfind("\n", 0, at) + 1
    wide = source.text.find("\N{FULLWIDTH COLON}", start, at + 200)
    if wide >= 0 and "\n" not in source.text[start:wide]:
        return source.fault(wide, "this is not the `:` of YAML", expected="`: `")
    unspaced = _UNSPACED.match(source.text, start)
    if unspaced is not None:
        sign = "dash" if unspaced["dash"] else "colon"
        message = f"a space is missing after `{unspaced[sign]}`"
        return source.fault(unspaced.start(sign), message, expected=f"`{unspaced[sign]} `")
    head = source.text[start : start + 1000]
    at = max(at, start + len(head) - len(head.lstrip(" -")))
    expected = "a `:` after the key, or more indentation if it belongs to the line above"
    return source.fault(at, "this line should be a `key: value` pair", expected=expected)


def _line_above(text: str, start: int) -> tuple[int, str]:
    """Where the nearest line above that says something begins, and the line; (0, "") if there is none."""
    while start > 0:
        end = start - 1
        start = text.rfind("\n", 0, end) + 1
        line = text[start:end]
        if line.strip() and not line.lstrip().startswith("#"):
            return start, line
    return 0, ""


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
