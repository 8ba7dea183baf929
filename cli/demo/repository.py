"""The demo's git side: a repository with the example project, its hook, and a server from which jobs fetch the code."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from cli.failure import Failure

NAME = "waypoint"
HOOK = Path(__file__).with_name("post_receive.py")
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "dist", ".test-cache", "*.pyc")
_AUTHOR = {"NAME": "A Developer", "EMAIL": "developer@example.org"}


@dataclass(frozen=True, slots=True)
class Repository:
    """`bare`: what is pushed to. `work`: the developer's clone of it."""

    bare: Path
    work: Path

    async def commit(self, message: str) -> str:
        """Commit everything in the clone. Returns the commit's id."""
        await git("add", "--all", cwd=self.work)
        await git("commit", "--quiet", f"--message={message}", cwd=self.work)
        return await git("rev-parse", "HEAD", cwd=self.work)

    async def push(self, branch: str) -> list[str]:
        """Push a branch. Returns what the repository's hook has said, line by line."""
        said = await git("push", "--quiet", "origin", branch, cwd=self.work, stderr=True)
        return [line.removeprefix("remote:").strip() for line in said.splitlines() if line.startswith("remote:")]

    def last_delivery(self) -> str:
        """Id of the webhook that was sent last."""
        sent = (self.bare / "hooks/deliveries").glob("*.json")
        return max(sent, key=lambda path: path.stat().st_mtime_ns).stem

    async def redeliver(self, delivery: str) -> str:
        """Send a webhook once more, as it was. Returns what the hook says about the answer."""
        return await _run([sys.executable, str(self.bare / "hooks/post-receive"), "--redeliver", delivery],
                          self.bare, stderr=True)  # fmt: skip

    def install_hook(self, url: str, secret: str, clone_url: str) -> None:
        """Let every push be told to `url`, signed with `secret`."""
        hooks = self.bare / "hooks"
        settings = {"url": url, "secret": secret, "clone_url": clone_url, "repository": f"demo/{NAME}"}
        keep = os.open(hooks / "hubflow.json", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(keep, "w") as file:
            json.dump(settings, file, indent=1)
        hook = hooks / "post-receive"
        hook.write_text(f"#!{sys.executable}\n{HOOK.read_text()}")
        hook.chmod(0o755)


async def make_repository(folder: Path, example: Path) -> Repository:
    """A fresh bare repository with one commit, the example project on the branch main, and a clone of it."""
    if shutil.which("git") is None:
        raise Failure("the demo pushes to a git repository, and there is no git on the PATH", hint="install git")
    shutil.rmtree(folder, ignore_errors=True)
    repository = Repository(folder / f"{NAME}.git", folder / NAME)
    repository.bare.mkdir(parents=True)
    await git("init", "--quiet", "--bare", "--initial-branch=main", str(repository.bare), cwd=folder)
    shutil.rmtree(repository.bare / "hooks")
    (repository.bare / "hooks").mkdir()
    shutil.copytree(example, repository.work, ignore=_LEFT_OUT)
    await git("init", "--quiet", "--initial-branch=main", cwd=repository.work)
    await git("remote", "add", "origin", str(repository.bare), cwd=repository.work)
    await repository.commit("Waypoint, a small URL shortener")
    await repository.push("main")
    return repository


@contextlib.asynccontextmanager
async def git_server(folder: Path, address: str) -> AsyncIterator[int]:
    """Serve the repositories below `folder` read-only over git:// on a free port of `address`. Gives the port."""
    listener = socket.create_server((address, 0))
    listener.setblocking(False)
    sessions: set[asyncio.Task[None]] = set()

    async def accept() -> None:
        while True:
            connection, _ = await asyncio.get_running_loop().sock_accept(listener)
            session = asyncio.create_task(_serve(connection, folder))
            sessions.add(session)
            session.add_done_callback(sessions.discard)

    accepting = asyncio.create_task(accept(), name="git server")
    try:
        yield int(listener.getsockname()[1])
    finally:
        accepting.cancel()
        for session in sessions:
            session.cancel()
        await asyncio.gather(accepting, *sessions, return_exceptions=True)
        listener.close()


async def _serve(connection: socket.socket, folder: Path) -> None:
    """One client: git's own daemon speaks to it, as inetd would start it."""
    connection.setblocking(True)
    with connection:
        daemon = await asyncio.create_subprocess_exec(
            "git", "daemon", "--inetd", "--export-all", "--strict-paths", "--init-timeout=10", "--timeout=60",
            f"--base-path={folder}", str(folder / f"{NAME}.git"), stdin=connection.fileno(), stdout=connection.fileno(),
            stderr=asyncio.subprocess.DEVNULL, env=_environment(),
        )  # fmt: skip
    try:
        await daemon.wait()
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            daemon.kill()
        await daemon.wait()
        raise


async def git(*arguments: str, cwd: Path, stderr: bool = False) -> str:
    """Run git. Returns what it printed (on stderr, if asked for). Raises Failure with git's own words."""
    return await _run(["git", *arguments], cwd, stderr=stderr)


async def _run(command: list[str], cwd: Path, *, stderr: bool) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, cwd=cwd, env=_environment(), stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, error = await process.communicate()
    if process.returncode:
        raise Failure(f"`{' '.join(command[:3])} ...` failed:\n{error.decode('utf-8', 'replace').strip()}")
    return (error if stderr else out).decode("utf-8", "replace").strip()


def _environment() -> dict[str, str]:
    """Without the user's git settings, and without those of a git that may have started us."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    people = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in _AUTHOR.items()}
    nothing = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull, "GIT_TERMINAL_PROMPT": "0"}
    return kept | people | nothing
