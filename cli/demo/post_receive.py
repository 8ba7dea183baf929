"""Git's post-receive hook of the demo: tells Hubflow of each push as Gitea would, and tells the pusher what came of it.

Stands alone: it is copied into the repository as hooks/post-receive and runs with nothing but Python's standard library.
Beside it, hubflow.json holds {"url", "secret", "clone_url", "repository"}, and deliveries/ what was sent, so that any of it
can be sent once more, identically: `hooks/post-receive --redeliver ID`.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
NOTHING = "0" * 40
COMMITS = 20
"""So many commits of a push are listed; `total_commits` tells how many there were."""
TIMEOUT_S = 30
_BETWEEN, _HEAD, _END = "\x1f", "\x1e", "\x1d"
_FORMAT = _HEAD + _BETWEEN.join(("%H", "%an", "%ae", "%cn", "%ce", "%cI", "%B")) + _END
_KINDS = {"A": "added", "M": "modified", "T": "modified", "D": "removed"}


def main(arguments: list[str]) -> int:
    settings = json.loads((HERE / "hubflow.json").read_text())
    if arguments[:1] == ["--redeliver"] and len(arguments) == 2:
        return deliver(settings, arguments[1])
    problems = 0
    for line in sys.stdin:
        before, after, ref = line.split()
        delivery = str(uuid.uuid4())
        kept = HERE / "deliveries" / f"{delivery}.json"
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(json.dumps(payload(settings, before, after, ref), indent=1))
        problems |= deliver(settings, delivery)
    return problems


def payload(settings: dict[str, Any], before: str, after: str, ref: str) -> dict[str, Any]:
    """What Gitea says about a push."""
    listed = [] if after == NOTHING else commits(before, after)
    pusher = {
        "login": "developer",
        "username": "developer",
        "full_name": "A Developer",
        "email": "developer@example.org",
    }
    return {
        "ref": ref,
        "before": before,
        "after": after,
        "commits": listed[:COMMITS],
        "total_commits": len(listed),
        "head_commit": listed[0] if listed else None,
        "repository": {
            "name": settings["repository"].rpartition("/")[2],
            "full_name": settings["repository"],
            "clone_url": settings["clone_url"],
            "html_url": settings["clone_url"],
            "default_branch": "main",
            "private": False,
        },
        "pusher": pusher,
        "sender": pusher,
    }


def commits(before: str, after: str) -> list[dict[str, Any]]:
    """The commits of a push, newest first, with the files that each has changed."""
    new = [after] if before == NOTHING else [f"{before}..{after}"]
    text = git("log", "--no-renames", "--name-status", f"--format={_FORMAT}", *new)
    return [commit(entry) for entry in text.split(_HEAD)[1:]]


def commit(entry: str) -> dict[str, Any]:
    head, _, files = entry.partition(_END)
    identity, author, author_email, committer, committer_email, when, message = head.split(_BETWEEN)
    changed: dict[str, list[str]] = {"added": [], "removed": [], "modified": []}
    for line in files.splitlines():
        kind, _, path = line.partition("\t")
        if path and kind in _KINDS:
            changed[_KINDS[kind]].append(path)
    return {
        "id": identity,
        "message": message,
        "timestamp": when,
        "author": {"name": author, "email": author_email},
        "committer": {"name": committer, "email": committer_email},
        **changed,
    }


def git(*arguments: str) -> str:
    command = ["git", "-c", "core.quotePath=false", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.decode("utf-8", "replace")


def deliver(settings: dict[str, Any], delivery: str) -> int:
    """Send what is kept under this id; say on one line what came of it. 0 if Hubflow has taken it."""
    body = (HERE / "deliveries" / f"{delivery}.json").read_bytes()
    headers = {
        "Content-Type": "application/json",
        "X-Gitea-Event": "push",
        "X-Gitea-Event-Type": "push",
        "X-Gitea-Delivery": delivery,
        "X-Gitea-Signature": hmac.new(settings["secret"].encode(), body, hashlib.sha256).hexdigest(),
    }
    try:
        request = urllib.request.Request(settings["url"], body, headers, method="POST")  # noqa: S310 -- our own address
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
            say(told(json.loads(answer.read())))
    except urllib.error.HTTPError as error:
        say(f"Hubflow refused this push ({error.code}): {complaint(error.read())}")
        return 1
    except (OSError, ValueError) as error:
        say(
            f"Hubflow does not answer at {settings['url']}: {error}; later: {HERE / 'post-receive'} --redeliver {delivery}"
        )
        return 1
    # Git shows this to the pusher; the last word of the line names the delivery.
    say(f"delivery {delivery}")
    return 0


def told(answer: dict[str, Any]) -> str:
    run = answer.get("run") or {}
    number = f"run {run['number']}" if "number" in run else "no run"
    detail = f" ({answer['detail']})" if answer.get("detail") else ""
    return f"Hubflow: {answer.get('outcome')}, {number}{detail}"


def complaint(body: bytes) -> str:
    """The sentence of a problem document, or whatever else came."""
    try:
        problem = json.loads(body)
        return " ".join(str(problem[name]) for name in ("detail", "hint") if problem.get(name))
    except (ValueError, TypeError, AttributeError):
        return body.decode("utf-8", "replace")[:200]


def say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
