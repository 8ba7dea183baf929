"""The demo's git side: its hook speaks Gitea's format as trigger reads it, and jobs can clone from its server."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from multidict import CIMultiDict

from cli.demo.repository import Repository, git, git_server, make_repository
from services.trigger.providers.gitea import GITEA
from services.trigger.providers.protocol import Request
from shared.errors import UserError

EXAMPLE = Path(__file__).parents[3] / "components/examples/waypoint"
SECRET = "whsec_of_the_workflow"


class Hub:
    """Stands where Hubflow's trigger would, and reads with trigger's own code."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.url = ""

    async def on_hook(self, request: web.Request) -> web.Response:
        asked = Request(CIMultiDict(request.headers), request.content_type, await request.read())
        try:
            GITEA.verify(asked, SECRET)
        except UserError as error:
            return web.json_response({"detail": str(error), "hint": error.hint}, status=error.status)
        self.heard.append(GITEA.read(asked))
        return web.json_response({"outcome": "started", "run": {"number": len(self.heard)}}, status=201)


@pytest.fixture
async def hub() -> AsyncIterator[Hub]:
    hub = Hub()
    app = web.Application()
    app.router.add_post("/hooks/dev/waypoint/gitea", hub.on_hook)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    hub.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hooks/dev/waypoint/gitea"
    yield hub
    await runner.cleanup()


@pytest.fixture
async def repository(tmp_path: Path) -> Repository:
    return await make_repository(tmp_path / "git", EXAMPLE)


async def test_a_push_is_told_in_giteas_format(hub: Hub, repository: Repository) -> None:
    repository.install_hook(hub.url, SECRET, "git://127.0.0.1:1/waypoint.git")
    await git("checkout", "--quiet", "-b", "side", cwd=repository.work)
    said = await repository.push("side")
    assert said[0] == "Hubflow: started, run 1"
    first = await git("rev-parse", "HEAD", cwd=repository.work)
    push = hub.heard[0].push
    assert (push.branch, push.commit, push.clone_url) == ("side", first, "git://127.0.0.1:1/waypoint.git")
    assert push.repository == "demo/waypoint"
    assert push.paths is None, "of a new branch nobody knows what it changes"


async def test_changed_files_and_the_message_are_told(hub: Hub, repository: Repository) -> None:
    repository.install_hook(hub.url, SECRET, "git://127.0.0.1:1/waypoint.git")
    (repository.work / "tools/lint.py").unlink()
    (repository.work / "Ünusual näme.txt").write_text("x\n")
    (repository.work / "README.md").write_text("x\n")
    await repository.commit('Change\n\nmany | strange: "things"')
    await repository.push("main")
    push = hub.heard[0].push
    assert push.paths == {"tools/lint.py", "Ünusual näme.txt", "README.md"}
    assert push.message.startswith("Change\n\nmany | strange")


async def test_a_deleted_branch_is_told_as_deleted(hub: Hub, repository: Repository) -> None:
    repository.install_hook(hub.url, SECRET, "git://127.0.0.1:1/waypoint.git")
    await git("checkout", "--quiet", "-b", "side", cwd=repository.work)
    await repository.push("side")
    await repository.push(":side")
    assert hub.heard[1].push.deleted


async def test_redelivery_is_identical(hub: Hub, repository: Repository) -> None:
    repository.install_hook(hub.url, SECRET, "git://127.0.0.1:1/waypoint.git")
    said = await repository.push("main:side")
    delivery = re.fullmatch(r"delivery (\S+)", said[1])
    assert delivery is not None
    assert "run 2" in await repository.redeliver(delivery[1])
    assert hub.heard[0] == hub.heard[1]


async def test_the_pusher_is_told_of_a_refusal(hub: Hub, repository: Repository) -> None:
    repository.install_hook(hub.url, "another secret", "git://127.0.0.1:1/waypoint.git")
    said = await repository.push("main:side")
    assert said[0].startswith("Hubflow refused this push (401): the signature")
    assert hub.heard == []


async def test_the_pusher_is_told_that_nobody_answers(repository: Repository) -> None:
    repository.install_hook("http://127.0.0.1:1/hooks", SECRET, "git://127.0.0.1:1/waypoint.git")
    said = await repository.push("main:side")
    assert "does not answer" in said[0]
    assert "--redeliver" in said[0]


def test_the_secret_is_for_its_owner_only(repository: Repository) -> None:
    repository.install_hook("http://127.0.0.1:1/hooks", SECRET, "git://127.0.0.1:1/waypoint.git")
    settings = repository.bare / "hooks/hubflow.json"
    assert settings.stat().st_mode & 0o077 == 0
    assert json.loads(settings.read_text())["secret"] == SECRET


async def test_jobs_clone_from_the_server(repository: Repository, tmp_path: Path) -> None:
    async with git_server(repository.bare.parent, "127.0.0.1") as port:
        address = f"git://127.0.0.1:{port}/waypoint.git"
        for number in range(3):
            await git("clone", "--quiet", address, str(tmp_path / str(number)), cwd=tmp_path)
        assert (tmp_path / "2/hubflow.yaml").read_text() == (EXAMPLE / "hubflow.yaml").read_text()
