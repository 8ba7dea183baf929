"""`hubflow artifact`: the files that runs have kept, each a tar archive."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from cli.api import Api, Stream, connect
from cli.failure import UNREACHABLE, USAGE, Failure
from cli.lazy import Group
from cli.output import Column, ago, output_option, plain, show, size

if sys.version_info >= (3, 11, 4):
    import tarfile
else:  # extractall has no filter there, as with Debian 12's Python
    from backports import tarfile  # type: ignore[attr-defined, no-redef]

COLUMNS = (
    Column("JOB", "job"),
    Column("NAME", "name"),
    Column("SIZE", lambda row: size(row.get("bytes"))),
    Column("FILES", "files"),
    Column("ATTEMPT", "attempt", wide=True),
    Column("SHA256", "sha256", wide=True),
    Column("KEPT", lambda row: ago(row.get("created_at"))),
)
_ZSTD = (b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18")
"""First bytes of zstd; the second is a skippable frame, with which the wrapper begins (pzstd does so too)."""
_ENDINGS = {**dict.fromkeys(_ZSTD, ".tar.zst"), b"\x1f\x8b": ".tar.gz"}
"""First bytes -> ending of the file."""


@click.group(cls=Group)
def artifact() -> None:
    """List and fetch the files that runs have kept."""


@artifact.command("list", epilog="""\b
Example:
  hubflow artifact list @latest""")  # fmt: skip
@click.argument("run_ref", metavar="RUN")
@output_option(name=True)
def list_artifacts(run_ref: str, output: str) -> None:
    """List the artifacts of a run. RUN is a number, an id, or @latest."""
    found = connect().get("runs", run_ref, "artifacts")["items"]
    show(found, output, COLUMNS, empty="the run has kept no artifacts")


@artifact.command(epilog="""\b
Examples:
  hubflow artifact get 12 dist                   into ./dist.tar.zst (or .tar.gz)
  hubflow artifact get 12 dist -o /tmp           into /tmp/dist.tar.zst
  hubflow artifact get 12 build/dist -x -o out   unpacked into the folder out
  hubflow artifact get 12 dist -o - | tar --zstd -t      to stdout""")  # fmt: skip
@click.argument("run_ref", metavar="RUN")
@click.argument("name", metavar="[JOB/]NAME")
@click.option("-o", "--output", "target", metavar="FILE|DIR", help="Where to put it; - is stdout.  [default: here]")
@click.option("-x", "--unpack", is_flag=True, help="Unpack it into DIR.")
def get(run_ref: str, name: str, target: str | None, unpack: bool) -> None:
    """Fetch an artifact of a run. RUN is a number, an id, or @latest."""
    if unpack and target == "-":
        raise Failure("nothing can be unpacked to stdout", hint="name a folder with -o", exit_code=USAGE)
    api = connect()
    wanted = _wanted(api, run_ref, name)
    if target == "-":
        with _opened(api, run_ref, wanted) as stream:
            for chunk in _verified(stream, wanted):
                sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
        return
    folder = _folder(target, unpack)
    try:
        with TemporaryDirectory(prefix=".hubflow-get-", dir=folder) as scratch:
            fresh = Path(scratch) / "artifact"
            with _opened(api, run_ref, wanted) as stream, fresh.open("wb") as file:
                for chunk in _verified(stream, wanted):
                    file.write(chunk)
            place = _unpack(fresh, Path(target or ".")) if unpack else _keep(fresh, target, str(wanted["name"]))
    except OSError as error:
        raise _not_written(folder, error) from None
    click.echo(f"{place}  ({size(wanted['bytes'])})", err=True)


def _wanted(api: Api, run_ref: str, name: str) -> dict[str, Any]:
    items = api.get("runs", run_ref, "artifacts")["items"]
    found = [each for each in items if name in {each["name"], f"{each['job']}/{each['name']}"}]
    jobs = {each["job"] for each in found}
    if len(jobs) > 1:
        names = ", ".join(f"{job}/{name}" for job in sorted(jobs))
        raise Failure(f"several jobs have kept an artifact {name!r}", hint=f"name one of: {names}", exit_code=USAGE)
    if not found:
        known = ", ".join(sorted({plain(f"{each['job']}/{each['name']}") for each in items}))
        hint = f"it has kept: {known}" if known else "it has kept none (yet)"
        raise Failure(f"run {run_ref} has no artifact {name!r}", hint=hint, exit_code=UNREACHABLE)
    return max(found, key=lambda each: int(each["attempt"]))


@contextmanager
def _opened(api: Api, run_ref: str, wanted: dict[str, Any]) -> Iterator[Stream]:
    path = ("runs", run_ref, "artifacts", str(wanted["job"]), str(wanted["name"]))
    with api.download(*path, query={"attempt": wanted["attempt"]}) as stream:
        yield stream


def _verified(stream: Stream, wanted: dict[str, Any]) -> Iterator[bytes]:
    """The chunks; raises Failure at the end if they are not what was kept."""
    digest, amount = hashlib.sha256(), 0
    for chunk in stream.chunks():
        digest.update(chunk)
        amount += len(chunk)
        yield chunk
    if amount != wanted["bytes"] or (wanted["sha256"] and digest.hexdigest() != wanted["sha256"]):
        raise Failure(
            f"what came is not what was kept: {amount} bytes instead of {wanted['bytes']}, or another checksum",
            hint="try again; if it stays so, the object storage has lost or changed it", exit_code=UNREACHABLE,
        )  # fmt: skip


def _folder(target: str | None, unpack: bool) -> Path:
    """Where to write first, so that the end is a rename. Raises Failure if it cannot be made."""
    path = Path(target or ".")
    folder = path if unpack or path.is_dir() else path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_written(folder, error) from None
    return folder


def _not_written(folder: Path, error: OSError) -> Failure:
    return Failure(f"cannot write to {folder}: {error.strerror}", exit_code=USAGE)


def _keep(fresh: Path, target: str | None, name: str) -> Path:
    with fresh.open("rb") as file:
        start = file.read(4)
    ending = next((ending for magic, ending in _ENDINGS.items() if start.startswith(magic)), ".tar")
    path = Path(target or ".")
    if path.is_dir():
        # The name comes from a workflow file: it must not lead out of the folder.
        path = path / (Path(name.replace("\\", "/")).name + ending)
    return fresh.replace(path)


def _unpack(fresh: Path, folder: Path) -> Path:
    """Raises Failure for archives that are damaged or want to leave the folder."""
    try:
        with opened_archive(fresh) as archive:
            archive.extractall(folder, filter="data")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise Failure(f"the archive cannot be unpacked: {error}") from None
    return folder


@contextmanager
def opened_archive(path: Path) -> Iterator[tarfile.TarFile]:
    """An artifact's archive, however packed, to be read from front to back. Raises tarfile.TarError, OSError, EOFError."""
    with path.open("rb") as file:
        is_zstd = file.read(4) in _ZSTD
    if not is_zstd:
        with tarfile.open(path) as archive:
            yield archive
        return
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    try:
        with zstd.open(path) as plain_file, tarfile.open(fileobj=plain_file, mode="r|") as archive:
            yield archive
    except zstd.ZstdError as error:
        raise tarfile.ReadError(str(error)) from None
