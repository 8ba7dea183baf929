"""Where the server is and who is asking: options, HUBFLOW_URL, HUBFLOW_TOKEN, HUBFLOW_TENANT, or the context file.

`hubflow dev` writes the file `.hubflow/context.json`; it is searched from the working directory upwards, so that after
`hubflow dev` every command just works. HUBFLOW_CONTEXT names another such file. What the environment says comes first,
item by item; but a token of the file is never sent to another server than the file's, and its tenant only with its token.
Nor is HUBFLOW_TOKEN sent to the server of a file that was merely found, which anybody may have put there (with a repository, or
in a folder that others can write to); and a found file of another user is not read at all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from cli.failure import USAGE, Failure

FOLDER = ".hubflow"
FILE = "context.json"
VARIABLES = ("HUBFLOW_URL", "HUBFLOW_TOKEN", "HUBFLOW_TENANT", "HUBFLOW_CONTEXT")
"""Variables of the command; they are no settings of the services."""


@dataclass(frozen=True, slots=True)
class Context:
    """Whom a command talks to. Empty strings: not known."""

    url: str
    token: str = ""
    tenant: str = ""
    file: str = ""
    """The context file that the address came from."""
    token_from_file: bool = False


def find(start: Path) -> Path | None:
    """The nearest context file of this user from `start` upwards. Tells on stderr of those that it leaves out."""
    for folder in (start, *start.parents):
        path = folder / FOLDER / FILE
        if not path.is_file():
            continue
        if path.stat().st_uid == os.geteuid():
            return path
        click.echo(
            f"{path} is left out: it belongs to another user (HUBFLOW_CONTEXT={path} says that it is meant)", err=True
        )
    return None


def read(path: Path) -> Context:
    """Raises Failure for a file that is not what `hubflow dev` writes."""
    try:
        values = json.loads(path.read_text("utf-8"))
        return Context(str(values["url"]), str(values.get("token", "")), str(values.get("tenant", "")), str(path))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Failure(
            f"the context file {path} cannot be used ({type(error).__name__}: {error})",
            hint="remove it and run `hubflow dev` again, or set HUBFLOW_URL and HUBFLOW_TOKEN", exit_code=USAGE,
        ) from None  # fmt: skip


def write(path: Path, context: Context) -> None:
    """Replace the file whole; only its owner can read it."""
    fresh = path.with_suffix(".new")
    values = {name: value for name, value in asdict(context).items() if name not in {"file", "token_from_file"}}
    with open(fresh, "w", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        json.dump(values, file, indent=2)
        file.write("\n")
    fresh.replace(path)


def resolve(options: Mapping[str, Any], environment: Mapping[str, str], start: Path) -> Context:
    """The context of one command. `options`: `url` and `tenant` of the command line (None: not given)."""
    named = environment.get("HUBFLOW_CONTEXT")
    path = Path(named) if named else find(start)
    stored = read(path) if path else Context("")
    said = options.get("url") or environment.get("HUBFLOW_URL")
    url = (said or stored.url).rstrip("/")
    if not url:
        raise Failure(
            "no server is known: HUBFLOW_URL is not set, and no .hubflow/context.json lies here or above",
            hint="`hubflow dev` starts one on this machine; or set HUBFLOW_URL and HUBFLOW_TOKEN", exit_code=USAGE,
        )  # fmt: skip
    if not url.startswith(("http://", "https://")):
        raise Failure(f"the server's address {url!r} must begin with http:// or https://", exit_code=USAGE)
    same = url == stored.url.rstrip("/")
    own_token = environment.get("HUBFLOW_TOKEN", "").strip()
    if own_token not in {"", stored.token} and not (said or named):
        raise Failure(
            f"HUBFLOW_TOKEN is not sent to {url}: that address comes from {path}, and may be anybody's",
            hint=f"say that it is meant, with HUBFLOW_URL={url} or HUBFLOW_CONTEXT={path}; or unset HUBFLOW_TOKEN",
            exit_code=USAGE,
        )
    token = own_token or (stored.token if same else "")
    ours = same and token == stored.token  # another token may be for another tenant than the file's
    tenant = options.get("tenant") or environment.get("HUBFLOW_TENANT") or (stored.tenant if ours else "")
    _check(token, tenant)
    return Context(url, token, tenant, stored.file if same else "", ours)


def _check(token: str, tenant: str) -> None:
    """Raise Failure for what no header can hold; the token is not shown."""
    if not _is_word(token):
        raise Failure(
            "the token (HUBFLOW_TOKEN, or of the context file) holds blanks or characters that no token has",
            hint="set it again, as `hubflow token create` has shown it", exit_code=USAGE,
        )  # fmt: skip
    if not _is_word(tenant):
        raise Failure(f"no tenant can have the name {tenant!r}", exit_code=USAGE)


def _is_word(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text
