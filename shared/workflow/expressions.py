"""References in texts: `${{ jobs.build.outputs.TAG }}`, and TencentHub's `${NAME}`.

Plain substitution in one pass: nothing is evaluated, and what is put in is never looked at again. A `${{` that is meant
literally is written `$${{`. `${NAME}` is replaced only where the name is known; all others are the shell's.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from shared.errors import PermanentError
from shared.states import Reason
from shared.workflow.faults import nearest, one_of, shorten

FIELDS: Mapping[str, tuple[str, ...]] = {
    "git": ("ref", "commit", "branch", "tag", "type", "clone_url", "repository", "url", "author", "message"),
    "run": ("id", "number", "url", "attempt"),
    "workflow": ("name", "version"),
    "trigger": ("type", "actor", "delivery"),
    "image": ("reference", "repository", "tag", "digest"),
    "pause": ("approve_url", "cancel_url"),
}
"""Roots with a fixed set of fields. The others: `jobs.J.outputs.X`, `jobs.J.state`, and `inputs`, `env`, `secrets` by name."""
NAMED = ("inputs", "env", "secrets")
ROOTS = ("jobs", *NAMED, *FIELDS)

# No braces inside, so that a text full of `${{` is read once and not once for each of them.
_REFERENCE = re.compile(r"(\$?)\$\{\{([^{}]*)\}\}|(\$?)\$\{\{")
_KNOWN_NAME = r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}"
_ANY = re.compile(r"(?P<escape>\$)?\$\{\{(?P<inner>[^{}]*)\}\}|" + _KNOWN_NAME)
_STEP = re.compile(r"""\s*(?:\.\s*([^\s.\[\]'"{}]+)|\[\s*(?:'([^']*)'|"([^"]*)")\s*\])""")
_ROOT = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*)")


@dataclass(frozen=True, slots=True)
class Reference:
    """One `${{ … }}` of a text."""

    text: str
    """As written, with the braces."""
    offset: int
    """Where it begins in the text."""
    path: tuple[str, ...]
    """`("jobs", "build", "outputs", "TAG")`; empty if it cannot be read."""


def references(text: str) -> list[Reference]:
    """All references of a text, escaped ones left out. One that is not closed has an empty path."""
    return list(each_reference(text))


def each_reference(text: str) -> Iterator[Reference]:
    """The same, one by one."""
    for match in _REFERENCE.finditer(text):
        if match[1] or match[3]:
            continue
        path = parse_path(match[2]) if match[2] is not None else ()
        yield Reference(match[0], match.start(), path)


def parse_path(inner: str) -> tuple[str, ...]:
    """The steps between the braces: words after dots, or `['any name']`. () if it is anything else."""
    root = _ROOT.match(inner)
    if root is None:
        return ()
    steps, at = [root[1]], root.end()
    while step := _STEP.match(inner, at):
        steps.append(step[1] or step[2] or step[3] or "")
        at = step.end()
    return tuple(steps) if not inner[at:].strip() and all(steps) else ()


def shape_fault(path: tuple[str, ...], roots: Collection[str] = ROOTS) -> tuple[str, str, str] | None:
    """(message, expected, suggestion) if no reference can look like this whatever the workflow, else None.

    `roots`: those that are allowed where the reference stands.
    """
    if not path:
        return "this reference cannot be read", "a name such as ${{ jobs.build.outputs.TAG }} or ${{ env.NAME }}", ""
    root, *rest = path
    if root not in ROOTS:
        return f"references cannot begin with `{shorten(root)}`", one_of(sorted(roots)), nearest(root, roots)
    if root not in roots:
        return f"`{root}` cannot be used here", one_of(sorted(roots)), ""
    if root == "jobs":
        if len(rest) == 3 and rest[1] == "outputs":
            return None
        if len(rest) == 2 and rest[1] == "state":
            return None
        return "a reference to a job names one of its outputs, or its state", "jobs.NAME.outputs.OUTPUT", ""
    if len(rest) != 1:
        return f"`{root}` needs exactly one name after it", f"{root}.NAME", ""
    if root in FIELDS and rest[0] not in FIELDS[root]:
        return f"`{root}` has no `{shorten(rest[0])}`", one_of(FIELDS[root]), nearest(rest[0], FIELDS[root])
    return None


def render(
    text: str, context: Mapping[str, Any], names: Mapping[str, str] | None = None, *, keep_missing: bool = False
) -> str:
    """`text` with its references replaced.

    `context` maps each root to its values: `{"jobs": {"build": {"state": "succeeded", "outputs": {"TAG": "1"}}},
    "inputs": {...}, "env": {...}, "secrets": {...}, "git": {...}, "run": {...}, ...}`; values are texts, numbers, truth values.
    `names`: values of `${NAME}`; None leaves every `${NAME}` alone. Raises PermanentError (reason BadInput) for a
    reference whose value does not exist; with `keep_missing` it stays as it is written.
    """

    def value(match: re.Match[str]) -> str:
        name = match[3]
        if name is not None:
            return names[name] if names is not None and name in names else match[0]
        if match["escape"]:
            return match[0][1:]
        try:
            return _look_up(match[0], parse_path(match["inner"]), context)
        except PermanentError:
            if keep_missing:
                return match[0]
            raise

    return _ANY.sub(value, text)


def cause(trigger: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """`git`, `image` and `trigger` for what belongs to a run and not to one of its jobs, from the run's `trigger`. What the
    run was started without is the empty text."""
    actor = {"type": trigger.get("type"), "actor": trigger.get("by"), "delivery": trigger.get("delivery")}
    given = {"git": trigger.get("git"), "image": trigger.get("image"), "trigger": actor}
    return {
        root: {name: str((values or {}).get(name) or "") for name in FIELDS[root]} for root, values in given.items()
    }


def render_globals(written: Mapping[str, Any], context: Mapping[str, Any]) -> dict[str, str]:
    """The workflow's global variables (texts, or maps with `value`) where there is no job. Left out are those that only a
    job has: they hold a secret, say."""
    texts = {name: given["value"] if isinstance(given, Mapping) else given for name, given in written.items()}
    values = {name: text for name, text in texts.items() if "$" not in text}
    for name, text in texts.items():
        with contextlib.suppress(PermanentError):
            values[name] = render(text, context, values)
    return {name: values[name] for name in texts if name in values}


def _look_up(written: str, path: tuple[str, ...], context: Mapping[str, Any]) -> str:
    value: Any = context
    for step in path:
        if not isinstance(value, Mapping) or value.get(step) is None:
            raise PermanentError(_missing(written, path, step, value), reason=Reason.BAD_INPUT)
        value = value[step]
    if not path or isinstance(value, (Mapping, list, tuple)):
        raise PermanentError(f"{shorten(written)} does not name a value.", reason=Reason.BAD_INPUT)
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _missing(written: str, path: tuple[str, ...], step: str, there: Any) -> str:
    message = f"{shorten(written)} has no value: "
    if path[0] == "jobs" and len(path) == 4 and step == path[3]:
        known = one_of(sorted(there)) if isinstance(there, Mapping) and there else "none"
        return f"{message}the job {path[1]} printed no output {step} (it printed: {known})."
    if path[0] == "secrets":
        return f"{message}the tenant has no secret {shorten(path[-1])}."
    if path[0] == "env":
        return f"{message}there is no global variable {shorten(step)}, or it has no value here."
    if path[0] == "git":
        return f"{message}this run was started without it (a push brings it, or `hubflow run start NAME --ref BRANCH`)."
    if path[0] in {"image", "pause"}:
        return f"{message}this run was started without it."
    return f"{message}there is no {shorten(step)}."


def mentioned_names(text: str) -> set[str]:
    """All names that stand in a text as `${NAME}`."""
    return set(re.findall(_KNOWN_NAME, text))
