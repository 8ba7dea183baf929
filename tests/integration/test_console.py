"""Console with its real HTTP server on a real PostgreSQL. Where runs have to move, the test plays the scheduler."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import html
import json
import os
import random
import re
import shlex
import socket as sockets
import string
import time
import uuid
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import jsonschema
import pytest
from prometheus_client import REGISTRY

from services.console import followers
from services.console.main import SERVICE as CONSOLE
from services.console.routes import logs
from services.console.store import runs as store
from services.console.store.runs import Glances
from services.trigger.main import SERVICE as TRIGGER
from shared import http
from shared.embedded import S3Address
from shared.errors import ConfigurationError, UserError
from shared.events import RunCancelRequested, RunFinished, RunPaused
from shared.http import quoted
from shared.states import RunState
from tests.chaos.proxy import Proxy
from tests.integration.serving import Client, Served, by_wire, serving

WORKFLOW = """
name: ship
description: Build and ship
inputs:
  version: {default: "1"}
  password: {secret: true, default: hunter2}
stages:
  - name: build
    jobs: {compile: {script: "make", inputs: {OPTION: "-O2", KEY: "${{ inputs.password }}"}}, lint: {script: "true"}}
  - name: "ask: really?"
    type: pause
    pause: {message: "Ship ${{ inputs.version }} <now>?"}
    jobs: {tell: {script: "true"}}
  - name: deploy
    jobs: {rollout: {script: "true"}}
"""
STAGE = "ask: really?"


@pytest.fixture
async def served(database: str) -> AsyncIterator[Served]:
    async with serving(database, [TRIGGER, CONSOLE]) as served:
        yield served


@pytest.fixture
async def acme(served: Served) -> Client:
    client = await served.tenant("acme")
    await apply(client)
    return client


async def apply(client: Client, source: str = WORKFLOW, name: str = "ship", query: str = "") -> dict[str, Any]:
    headers = {"Content-Type": "application/yaml"}
    return await client.ok("PUT", f"/api/v1/workflows/{name}{query}", source, headers=headers)


async def start(client: Client, name: str = "ship") -> dict[str, Any]:
    return await client.ok("POST", f"/api/v1/workflows/{name}/runs", {})


async def move(served: Served, run: str, state: str, *events: Any) -> None:
    """Play the scheduler: a new state, told in the same transaction."""
    async with served.host.database.transaction() as tx:
        await tx.connection.execute(
            "UPDATE runs SET state = $2, finished_at = CASE WHEN $3 THEN now() END WHERE id = $1",
            uuid.UUID(run), state, RunState(state).final,
        )  # fmt: skip
        tx.tell(*events)


async def take_up(served: Served, run: str) -> None:
    """Play the scheduler: rows of stages and jobs."""
    id = uuid.UUID(run)
    for position, (name, state) in enumerate((("build", "succeeded"), (STAGE, "running"), ("deploy", "waiting"))):
        await served.host.database.execute(
            "INSERT INTO stages (run, position, name, state) VALUES ($1, $2, $3, $4)", id, position, name, state
        )
    for position, (stage, name) in enumerate(
        (("build", "compile"), ("build", "lint"), (STAGE, "tell"), ("deploy", "rollout"))
    ):
        await served.host.database.execute(
            "INSERT INTO jobs (run, position, tenant, stage, name, state, attempt) VALUES ($1, $2, 'acme', $3, $4, $5, $6)",
            id, position, stage, name, "waiting" if stage == "deploy" else "succeeded", 0 if stage == "deploy" else 1,
        )  # fmt: skip
    await served.host.database.execute("UPDATE runs SET state = 'running', admitted_at = now() WHERE id = $1", id)


# ---------------------------------------------------------------- tenants, tokens, secrets


async def test_tenants_are_the_operators(served: Served, acme: Client) -> None:
    assert (await acme.call("POST", "/api/v1/tenants", {"name": "evil"})).status == 403
    assert (await acme.call("GET", "/api/v1/tenants")).status == 403
    assert (await acme.get("/api/v1/tenant"))["name"] == "acme"
    again = await served.operator.call("POST", "/api/v1/tenants", {"name": "acme"})
    assert (again.status, again.body["code"]) == (409, "tenant-exists")
    bad = await served.operator.call("POST", "/api/v1/tenants", {"name": "No Good", "quota": {"jobs": -1, "job": 2}})
    assert bad.status == 400
    assert {fault["at"] for fault in bad.body["faults"]} == {"name", "quota.jobs", "quota.job"}


async def test_a_new_quota_is_told(served: Served, acme: Client) -> None:
    tenant = await served.operator.ok("PUT", "/api/v1/tenants/acme/quota", {"jobs": 4, "cpu_millis": 2000})
    assert tenant["quota"] == {"runs": None, "jobs": 4, "cpu_millis": 2000, "memory_bytes": None}
    told = await served.host.database.fetchval("SELECT count(*) FROM events WHERE type = 'tenant.quota_changed'")
    assert told == 1
    assert (await served.operator.call("PUT", "/api/v1/tenants/nobody/quota", {})).status == 404


async def test_long_lists_come_in_pages(served: Served) -> None:
    for number in range(7):
        await served.operator.ok("POST", "/api/v1/tenants", {"name": f"t{number}"})
    names, cursor = [], ""
    while cursor is not None:
        page = await served.operator.get(f"/api/v1/tenants?limit=3&cursor={cursor}")
        names += [tenant["name"] for tenant in page["items"]]
        cursor = page["next_cursor"]
    assert names == [f"t{number}" for number in range(7)]
    for bad in ("limit=0", "limit=x", "cursor=!", "cursor=WzFd&limit=2x", "unknown=1"):
        assert (await served.operator.call("GET", f"/api/v1/tenants?{bad}")).status == 400, bad


async def test_a_token_is_shown_once_and_ends_when_revoked(served: Served, acme: Client) -> None:
    body = {"name": "ci", "scopes": ["read"]}
    made = await acme.ok("POST", "/api/v1/tokens", body, headers={"Idempotency-Key": "k"})
    again = await acme.ok("POST", "/api/v1/tokens", body, headers={"Idempotency-Key": "k"})
    assert again == made
    kept = await served.host.database.fetchval("SELECT string_agg(response::text, '') FROM idempotency_keys")
    assert made["token"] not in kept
    ci = acme.as_token(made["token"])
    assert (await ci.get("/api/v1/tenant"))["name"] == "acme"
    assert (await ci.call("GET", "/api/v1/tokens")).status == 403
    assert all("token" not in each for each in (await acme.get("/api/v1/tokens"))["items"])
    await acme.ok("DELETE", f"/api/v1/tokens/{made['id']}")
    assert (await ci.call("GET", "/api/v1/tenant")).status == 401


@pytest.mark.parametrize("scope", ["run", "write", "approve"])
async def test_whoever_may_do_something_may_look(served: Served, acme: Client, scope: str) -> None:
    run = await start(acme)
    bearer = await served.tenant("acme", scope)
    assert (await bearer.get(f"/api/v1/runs/{run['number']}?wait=0.1"))["id"] == run["id"]
    assert (await bearer.get(f"/api/v1/runs/{run['id']}/events"))["items"]
    answer = await bearer.call("GET", "/api/v1/tokens")
    assert (answer.status, answer.body["code"]) == (403, "forbidden")
    others = {
        "run": ("POST", f"/api/v1/runs/{run['id']}/cancel", {}),
        "write": ("DELETE", "/api/v1/workflows/ship", None),
        "approve": ("POST", f"/api/v1/runs/{run['id']}/stages/build/decision", {"action": "approve"}),
    }
    for other, request in others.items():
        assert ((await bearer.call(*request)).status == 403) == (other != scope), other


async def test_an_expired_token_is_refused(served: Served, acme: Client) -> None:
    made = await acme.ok("POST", "/api/v1/tokens", {"name": "short", "scopes": ["read"], "expires_in": 3600})
    await served.host.database.execute("UPDATE tokens SET expires_at = now() WHERE id = $1", uuid.UUID(made["id"]))
    assert (await acme.as_token(made["token"]).call("GET", "/api/v1/tenant")).status == 401


async def test_tenants_do_not_see_one_another(served: Served, acme: Client) -> None:
    run = await start(acme)
    made = await acme.ok("POST", "/api/v1/tokens", {"name": "mine", "scopes": ["read"]})
    other = await served.tenant("other")
    for path in (
        f"/api/v1/runs/{run['id']}", f"/api/v1/runs/{run['number']}", "/api/v1/runs/@latest", "/api/v1/workflows/ship",
        f"/api/v1/runs/{run['id']}/events", f"/api/v1/runs/{run['id']}/jobs/compile", f"/api/v1/runs/{run['id']}/artifacts",
    ):  # fmt: skip
        assert (await other.call("GET", path)).status == 404, path
    assert (await other.call("DELETE", f"/api/v1/tokens/{made['id']}")).status == 404
    assert (await other.call("POST", f"/api/v1/runs/{run['id']}/cancel", {})).status == 404
    assert (await other.call("GET", "/api/v1/runs", headers={"Hubflow-Tenant": "acme"})).status == 403


async def test_a_secrets_value_never_comes_back(served: Served, acme: Client) -> None:
    await acme.ok("PUT", "/api/v1/secrets/HUB_TOKEN", {"value": "s3cr3t-value"})
    await acme.ok("PUT", "/api/v1/secrets/HUB_TOKEN", {"value": "s3cr3t-value-2"})
    assert [each["name"] for each in (await acme.get("/api/v1/secrets"))["items"]] == ["HUB_TOKEN"]
    stored = await served.host.database.fetchval("SELECT value FROM secrets")
    assert b"s3cr3t" not in stored
    assert served.host.vault.decrypt(stored) == "s3cr3t-value-2"
    assert (await acme.call("PUT", "/api/v1/secrets/bad-name", {"value": "x"})).status == 422
    assert not any("s3cr3t" in json.dumps(answer.body) for _, _, answer in acme.seen)
    await acme.ok("DELETE", "/api/v1/secrets/HUB_TOKEN")
    assert (await acme.call("DELETE", "/api/v1/secrets/HUB_TOKEN")).status == 404


async def test_every_administrative_act_is_in_the_audit_log(served: Served, acme: Client) -> None:
    await acme.ok("PUT", "/api/v1/secrets/A", {"value": "x"})
    await acme.ok("DELETE", "/api/v1/secrets/A")
    await acme.ok("DELETE", "/api/v1/workflows/ship")
    entries = (await acme.get("/api/v1/audit"))["items"]
    assert [(each["action"], each["actor"]) for each in entries] == [
        ("workflow.delete", "token:acme-tests"), ("secret.delete", "token:acme-tests"), ("secret.put", "token:acme-tests"),
        ("workflow.apply", "token:acme-tests"), ("token.create", "token:bootstrap"), ("tenant.create", "token:bootstrap"),
    ]  # fmt: skip


# ---------------------------------------------------------------- workflows


async def test_applying_makes_versions_only_when_something_changed(acme: Client) -> None:
    assert (await apply(acme))["changed"] is False
    changed = WORKFLOW.replace("Build and ship", "Build, ship")
    assert await apply(acme, changed, query="?dry_run=true") == {
        "name": "ship", "version": 2, "changed": True, "dry_run": True, "warnings": [],
    }  # fmt: skip
    assert (await apply(acme, changed))["version"] == 2
    listed = (await acme.get("/api/v1/workflows"))["items"]
    assert [(each["name"], each["version"], each["description"]) for each in listed] == [("ship", 2, "Build, ship")]
    versions = (await acme.get("/api/v1/workflows/ship/versions"))["items"]
    assert [each["version"] for each in versions] == [2, 1]
    source = await acme.call("GET", "/api/v1/workflows/ship/versions/1/source")
    assert source.body == WORKFLOW
    assert (await acme.get("/api/v1/workflows/ship/versions/1"))["newest"] == 2
    assert (await acme.call("GET", "/api/v1/workflows/ship/versions/9")).status == 404


async def test_two_who_apply_at_once_get_different_versions(acme: Client) -> None:
    sources = [WORKFLOW.replace("Build and ship", f"Variant {number}") for number in range(6)]
    applied = await asyncio.gather(*(apply(acme, source) for source in sources))
    assert sorted(each["version"] for each in applied) == [2, 3, 4, 5, 6, 7]


async def test_all_faults_of_a_file_are_told_with_their_lines(acme: Client) -> None:
    bad = WORKFLOW.replace('script: "make"', "scirpt: make").replace("type: pause", "type: pasue")
    answer = await acme.call("PUT", "/api/v1/workflows/ship?file=ci/ship.yaml", {"source": bad})
    assert (answer.status, answer.body["code"]) == (422, "invalid-workflow")
    assert len(answer.body["faults"]) >= 2
    assert "ci/ship.yaml:" in answer.body["detail"]
    assert "^" in answer.body["detail"]
    assert {fault["suggestion"] for fault in answer.body["faults"]} >= {"script", "pause"}
    assert (await acme.get("/api/v1/workflows/ship"))["version"] == 1


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"\xff\xfe", 400),
        (b"", 422),
        (b"name: other\nstages: [{name: a, jobs: {b: {script: x}}}]", 422),
        (b"x" * 300_000, 422),
    ],
)
async def test_files_that_are_none_are_refused(acme: Client, body: bytes, status: int) -> None:
    answer = await acme.call("PUT", "/api/v1/workflows/ship", body, headers={"Content-Type": "application/yaml"})
    assert answer.status == status, answer.body


async def test_a_deleted_workflow_comes_back_with_its_next_version(acme: Client) -> None:
    run = await start(acme)
    await acme.ok("DELETE", "/api/v1/workflows/ship")
    assert (await acme.call("GET", "/api/v1/workflows/ship")).status == 404
    assert (await acme.call("POST", "/api/v1/workflows/ship/runs", {})).status == 404
    assert (await acme.get(f"/api/v1/runs/{run['id']}"))["workflow"] == "ship"
    assert (await apply(acme))["version"] == 2


async def test_hooks_have_addresses_and_a_secret_for_those_who_may_write(served: Served, acme: Client) -> None:
    hook = await acme.get("/api/v1/workflows/ship/hook")
    assert hook["urls"]["github"] == f"{served.host.public_url}/hooks/acme/ship/github"
    assert hook["secret"].startswith("whsec_")
    reader = await served.tenant("acme", "read")
    assert (await reader.call("GET", "/api/v1/workflows/ship/hook")).status == 403


# ---------------------------------------------------------------- runs


async def test_a_run_is_found_by_id_number_and_latest(acme: Client) -> None:
    first, second = await start(acme), await start(acme)
    for name, run in (
        (first["id"], first),
        (first["number"], first),
        (str(second["id"]).upper(), second),
        ("@latest", second),
    ):
        assert (await acme.get(f"/api/v1/runs/{name}"))["id"] == run["id"]
    for name in ("0", "x", "@oldest", "9" * 30, str(uuid.uuid4()), "-1", "{x}"):
        answer = await acme.call("GET", f"/api/v1/runs/{name}")
        assert (answer.status, answer.body["code"]) == (404, "run-not-found"), name


async def test_a_run_shows_its_tree_and_why_it_waits(served: Served, acme: Client) -> None:
    first, second = await start(acme), await start(acme)
    run = await acme.get(f"/api/v1/runs/{second['id']}")
    assert [(stage["name"], stage["type"], stage["state"]) for stage in run["stages"]] == [
        ("build", "normal", "waiting"), (STAGE, "pause", "waiting"), ("deploy", "normal", "waiting"),
    ]  # fmt: skip
    assert run["waiting"]["position"] == 1
    assert run["inputs"] == {"version": "1", "password": "***"}
    await take_up(served, first["id"])
    run = await acme.get(f"/api/v1/runs/{first['id']}")
    assert [[job["name"] for job in stage["jobs"]] for stage in run["stages"]] == [
        ["compile", "lint"],
        ["tell"],
        ["rollout"],
    ]
    assert run["waiting"] is None
    await served.host.database.execute(
        "UPDATE jobs SET eligible_at = now(), reason = 'Quota', message = 'the quota of 2 jobs is used up' "
        "WHERE name = 'rollout'"
    )
    waiting = (await acme.get(f"/api/v1/runs/{first['id']}"))["waiting"]
    assert waiting == {"reason": "Quota", "message": "the quota of 2 jobs is used up", "position": 0}


async def test_the_password_of_a_clone_url_is_not_shown(served: Served, acme: Client) -> None:
    grouped = WORKFLOW.replace("stages:", "concurrency: {group: 'deploy ${{ git.clone_url }}'}\nstages:", 1)
    await apply(acme, grouped)
    url = "https://bot:ghp_x12345@host/r.git"
    started = await acme.ok("POST", "/api/v1/workflows/ship/runs", {"clone_url": url})
    await served.host.database.execute(
        "UPDATE runs SET reason = 'Concurrency', message = 'waits for ' || concurrency_group"
    )
    reader = await served.tenant("acme", "read")
    shown = [await reader.get(started["url"]), *(await reader.get("/api/v1/runs"))["items"]]
    assert [run["trigger"]["git"]["clone_url"] for run in shown] == ["https://bot:***@host/r.git"] * 2
    events = await reader.get(f"{started['url']}/events")
    page = await acme.as_token("").call("GET", link(served, started["id"]))
    assert "ghp_x12345" not in json.dumps([started, shown, events, page.body])
    await move(served, started["id"], "failed")
    again = await acme.ok("POST", f"{started['url']}/retry", {})
    kept = await served.host.database.fetchval("SELECT trigger FROM runs WHERE id = $1", uuid.UUID(again["id"]))
    assert kept["git"]["clone_url"] == url  # jobs of the retry still clone


async def test_jobs_of_any_name_have_an_address(acme: Client) -> None:
    names = ["{y}", "[x]", "?#%2e", "a\\b", "☃", "-"]
    jobs = ", ".join(f"{json.dumps(name)}: {{script: 'true'}}" for name in names)
    await apply(acme, f"name: odd {{}}\nstages: [{{name: one, jobs: {{{jobs}}}}}]", quoted("odd {}"))
    run = await start(acme, quoted("odd {}"))
    for name in names:
        assert (await acme.get(f"{run['url']}/jobs/{quoted(name)}"))["name"] == name


async def test_runs_are_listed_newest_first_and_filtered(served: Served, acme: Client) -> None:
    runs = [await start(acme) for _ in range(5)]
    await move(served, runs[1]["id"], "failed")
    await move(served, runs[2]["id"], "running")
    page = await acme.get("/api/v1/runs?limit=3")
    assert [each["number"] for each in page["items"]] == [run["number"] for run in reversed(runs[2:])]
    page = await acme.get(f"/api/v1/runs?limit=3&cursor={page['next_cursor']}")
    assert [each["number"] for each in page["items"]] == [runs[1]["number"], runs[0]["number"]]
    assert page["next_cursor"] is None
    assert [each["id"] for each in (await acme.get("/api/v1/runs?state=failed,running"))["items"]] == [
        runs[2]["id"],
        runs[1]["id"],
    ]
    assert len((await acme.get("/api/v1/runs?state=active"))["items"]) == 4
    assert (await acme.get("/api/v1/runs?workflow=other"))["items"] == []
    assert (await acme.call("GET", "/api/v1/runs?state=broken")).status == 400


async def test_waiting_for_a_run_answers_when_it_is_over(served: Served, acme: Client) -> None:
    run = await start(acme)
    waiting = asyncio.create_task(acme.get(f"/api/v1/runs/{run['id']}?wait=30"))
    await until(lambda: readers() == 1)
    await move(served, run["id"], "running", RunPaused(tenant="acme", run=uuid.UUID(run["id"]), stage=STAGE))
    assert not waiting.done()
    begun = time.monotonic()
    await move(served, run["id"], "failed", RunFinished(tenant="acme", run=uuid.UUID(run["id"]), state="failed"))
    assert (await waiting)["state"] == "failed"
    assert time.monotonic() - begun < 0.5, "it did not wait for the fallback of a second"
    assert readers() == 0


async def test_readers_that_hear_nothing_look_together(
    served: Served, acme: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The news of a run may be lost; then its readers see it a second later, at the cost of one statement for all."""
    runs = [await start(acme) for _ in range(5)]
    waiting = [asyncio.create_task(acme.get(f"/api/v1/runs/{run['id']}?wait=30")) for run in runs]
    await until(lambda: readers() == len(runs))
    for run in runs:
        await move(served, run["id"], "failed")
    async with asyncio.timeout(5):
        assert [(await each)["state"] for each in waiting] == ["failed"] * len(runs)
    looks = []
    look = Glances._look

    async def counted(self: Glances, batch: Any) -> None:
        looks.append(len(batch))
        await look(self, batch)

    monkeypatch.setattr(Glances, "_look", counted)
    glances, first = Glances(served.host.database), uuid.UUID(runs[0]["id"])
    found, of_another, unknown, *others = await asyncio.gather(
        glances.at("acme", first), glances.at("globex", first), glances.at("acme", uuid.uuid4()),
        *(glances.at("acme", uuid.UUID(run["id"])) for run in runs),
    )  # fmt: skip
    assert found is not None
    assert (found["id"], found["state"]) == (first, "failed")
    assert of_another is None
    assert unknown is None
    assert [str(each["id"]) for each in others if each is not None] == [run["id"] for run in runs]
    assert looks == [8]


def readers() -> float:
    """How many requests of this process wait for news."""
    return REGISTRY.get_sample_value("hubflow_console_readers") or 0.0


async def until(condition: Callable[[], bool], seconds: float = 5) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.001)


async def test_waiting_ends_with_its_time_and_at_once_where_nothing_is_to_come(served: Served, acme: Client) -> None:
    run = await start(acme)
    begun = time.monotonic()
    assert (await acme.get(f"/api/v1/runs/{run['id']}?wait=0.3"))["state"] == "pending"
    assert 0.25 < time.monotonic() - begun < 5
    seq = (await acme.get(f"/api/v1/runs/{run['id']}"))["seq"]
    assert (await acme.get(f"/api/v1/runs/{run['id']}?wait=60&until=change&since={seq - 1}"))["seq"] == seq
    await move(served, run["id"], "paused")
    assert (await acme.get(f"/api/v1/runs/{run['id']}?wait=60&until=paused"))["state"] == "paused"
    await move(served, run["id"], "succeeded")
    assert (await acme.get(f"/api/v1/runs/{run['id']}?wait=60"))["state"] == "succeeded"
    assert (await acme.call("GET", f"/api/v1/runs/{run['id']}?wait=-1")).status == 400


async def test_a_cancel_is_told_and_a_late_one_hears_who_was_first(served: Served, acme: Client) -> None:
    run = await start(acme)
    answer = await acme.call("POST", f"/api/v1/runs/{run['number']}/cancel", {"reason": "wrong branch"})
    assert answer.status == 202
    told = (await acme.get(f"/api/v1/runs/{run['id']}/events"))["items"][-1]
    assert (told["type"], told["by"], told["why"]) == ("run.cancel_requested", "token:acme-tests", "wrong branch")
    await move(served, run["id"], "cancelled")
    late = await acme.call("POST", f"/api/v1/runs/{run['id']}/cancel", {})
    assert (late.status, late.body["code"], late.body["state"]) == (409, "run-over", "cancelled")
    assert (late.body["by"], late.body["comment"]) == ("token:acme-tests", "wrong branch")


async def test_t35_a_retry_is_a_new_run_of_the_same_version(served: Served, acme: Client) -> None:
    run = await start(acme)
    early = await acme.call("POST", f"/api/v1/runs/{run['id']}/retry", {})
    assert (early.status, early.body["code"]) == (409, "run-not-over")
    await move(served, run["id"], "failed")
    await apply(acme, WORKFLOW.replace("Build and ship", "Newer"))
    headers = {"Idempotency-Key": "r"}
    new, same = [await acme.ok("POST", f"/api/v1/runs/{run['id']}/retry", {}, headers=headers) for _ in range(2)]
    assert new == same
    shown = await acme.get(new["url"])
    assert (shown["retry_of"], shown["version"], shown["trigger"]["type"]) == (run["id"], 1, "retry")
    assert shown["number"] > run["number"]
    await move(served, new["id"], "succeeded")
    assert (await acme.call("POST", f"/api/v1/runs/{new['id']}/retry", {})).body["code"] == "run-succeeded"


async def test_t81_events_of_a_run_come_in_order_and_can_be_followed(served: Served, acme: Client) -> None:
    run = await start(acme)
    url = f"{acme.url}/api/v1/runs/{run['id']}/events?follow=true"
    headers = {"Authorization": f"Bearer {acme.token}"}
    async with acme.session.get(url, headers=headers) as response:
        assert response.headers["Content-Type"] == "text/event-stream"
        first = await response.content.readuntil(b"\n\n")
        assert b"event: run.created" in first
        await acme.ok("POST", f"/api/v1/runs/{run['id']}/cancel", {})
        assert b"event: run.cancel_requested" in await response.content.readuntil(b"\n\n")
        await move(
            served, run["id"], "cancelled", RunFinished(tenant="acme", run=uuid.UUID(run["id"]), state="cancelled")
        )
        rest = await response.content.read()
        assert b"id: 3\nevent: run.finished" in rest
    resumed = await acme.call("GET", f"/api/v1/runs/{run['id']}/events?follow=true", headers={"Last-Event-ID": "2"})
    assert re.findall(r"id: (\d+)", resumed.body) == ["3"]
    page = await acme.get(f"/api/v1/runs/{run['id']}/events?since=1&limit=1")
    assert ([event["seq"] for event in page["items"]], page["next_since"]) == ([2], 2)


async def test_a_follower_that_hears_nothing_reads_no_events(
    served: Served, acme: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await start(acme)
    read, looks, events, at = [], [], store.events, Glances.at

    async def counted_events(*arguments: Any) -> Any:
        read.append(arguments)
        return await events(*arguments)

    async def counted_at(self: Glances, *arguments: Any) -> Any:
        looks.append(arguments)
        return await at(self, *arguments)

    monkeypatch.setattr(store, "events", counted_events)
    monkeypatch.setattr(Glances, "at", counted_at)
    url = f"{acme.url}/api/v1/runs/{run['id']}/events?follow=true"
    async with acme.session.get(url, headers={"Authorization": f"Bearer {acme.token}"}) as response:
        assert b"event: run.created" in await response.content.readuntil(b"\n\n")
        await until(lambda: len(looks) == 2)
        assert len(read) == 1
        await move(served, run["id"], "failed")  # its news is lost
        assert await response.content.read() == b""
    assert len(read) == 1


async def test_followers_are_limited_by_tenant_and_in_all(database: str) -> None:
    limits = {"HUBFLOW_CONSOLE_FOLLOWERS": "2", "HUBFLOW_CONSOLE_ALL_FOLLOWERS": "3"}
    async with serving(database, [TRIGGER, CONSOLE], limits) as served, contextlib.AsyncExitStack() as stack:
        acme, globex = [await served.tenant(name) for name in ("acme", "globex")]
        paths = {}
        for client in (acme, globex):
            await apply(client)
            paths[client.token] = (await start(client))["url"]

        async def follow(client: Client) -> aiohttp.ClientResponse:
            headers = {"Authorization": f"Bearer {client.token}"}
            request = client.session.get(f"{client.url}{paths[client.token]}/events?follow=true", headers=headers)
            return await stack.enter_async_context(request)

        followed = [await follow(acme), await follow(acme)]
        assert [each.status for each in followed] == [200, 200]
        job = f"{paths[acme.token]}/jobs/compile/log"
        for path in (f"{paths[acme.token]}/events?follow=true", f"{job}?follow=true", f"{job}/stream"):
            refused = await acme.call("GET", path)
            assert (refused.status, refused.body["code"]) == (429, "too-many-followers"), path
            assert refused.headers["Retry-After"] == "10"
        assert (await acme.call("GET", f"{paths[acme.token]}/events")).status == 200
        assert (await follow(globex)).status == 200
        assert (await follow(globex)).status == 429  # of its two, but there are three
        followed[0].close()
        async with asyncio.timeout(5):
            while (await follow(globex)).status == 429:
                pass


@pytest.mark.parametrize("setting", ["FOLLOWERS", "ALL_FOLLOWERS"])
async def test_a_limit_of_no_followers_is_refused_at_start(database: str, setting: str) -> None:
    with pytest.raises(ConfigurationError, match=f"HUBFLOW_CONSOLE_{setting} must be above 0"):
        async with serving(database, [CONSOLE], {f"HUBFLOW_CONSOLE_{setting}": "0"}):
            pass


async def test_t60_a_follower_of_events_that_takes_nothing_is_let_go(
    served: Served, acme: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = uuid.UUID((await start(acme))["id"])
    monkeypatch.setattr(http, "STUCK_SECONDS", 0.2)
    async with served.host.database.transaction() as tx:
        tx.tell(*(RunCancelRequested(tenant="acme", run=run, by="me", why="x" * 100_000) for _ in range(200)))
    async with unread(acme, f"/api/v1/runs/{run}/events?follow=true", websocket=False):
        await until(lambda: readers() == 1)
        await until(lambda: readers() == 0)
        assert (await acme.get(f"/api/v1/runs/{run}"))["id"] == str(run), "others are served meanwhile"


async def test_a_job_shows_its_inputs_outputs_and_attempts(served: Served, acme: Client) -> None:
    run = await start(acme)
    job = await acme.get(f"/api/v1/runs/{run['id']}/jobs/compile")
    assert (job["state"], job["stage"], job["inputs"], job["attempts"]) == (
        "waiting",
        "build",
        {"OPTION": "-O2", "KEY": "${{ inputs.password }}"},
        [],
    )
    await take_up(served, run["id"])
    for attempt, state in ((1, "failed"), (2, "succeeded")):
        await served.host.database.execute(
            "INSERT INTO attempts (container, run, job, attempt) VALUES ($1, $2, 'compile', $3)",
            f"hf-{attempt}", uuid.UUID(run["id"]), attempt,
        )  # fmt: skip
        await served.host.database.execute(
            "INSERT INTO attempt_outcomes (container, run, job, attempt, state, exit_code, finished_at, outputs) "
            "VALUES ($1, $2, 'compile', $3, $4, $5, now(), $6)",
            f"hf-{attempt}", uuid.UUID(run["id"]), attempt, state, 2 - attempt, {"TAG": str(attempt)},
        )  # fmt: skip
    job = await acme.get(f"/api/v1/runs/{run['id']}/jobs/compile")
    assert [(each["attempt"], each["state"], each["exit_code"]) for each in job["attempts"]] == [
        (1, "failed", 1),
        (2, "succeeded", 0),
    ]
    assert job["outputs"] == {"TAG": "2"}
    assert (await acme.call("GET", f"/api/v1/runs/{run['id']}/jobs/nope")).body["code"] == "job-not-found"


async def test_a_link_to_a_run_says_how_to_see_it_and_nothing_about_it(served: Served, acme: Client) -> None:
    run = await start(acme)
    page = await acme.as_token("").call("GET", f"/runs/{run['id']}")
    assert (page.status, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert f"hubflow run show {run['id']}" in page.body
    assert (await acme.as_token("").call("GET", "/runs/%3Cscript%3E")).status == 404


# ---------------------------------------------------------------- decisions


def link(served: Served, run: str, action: str = "approve", *, stage: str = STAGE, lives: float = 3600) -> str:
    token = served.host.vault.sign_link(
        "decision", f"{run}:{stage}:{action}", served.host.clock.now() + timedelta(seconds=lives)
    )
    return f"/d/{token}"


async def test_a_decision_by_token_is_told_once(served: Served, acme: Client) -> None:
    run = await start(acme)
    await take_up(served, run["id"])
    path = f"/api/v1/runs/{run['id']}/stages/{STAGE.replace('?', '%3F')}/decision"
    runner = await served.tenant("acme", "run")
    assert (await runner.call("POST", path, {"action": "approve"})).status == 403
    assert (await acme.call("POST", path, {"action": "maybe"})).status == 400
    decided = await acme.call("POST", path, {"action": "approve", "comment": "looks good"})
    assert (decided.status, decided.body["decision"]["by"]) == (201, "token:acme-tests")
    shown = await acme.get(f"/api/v1/runs/{run['id']}")
    assert shown["stages"][1]["decision"]["comment"] == "looks good"
    told = (await acme.get(f"/api/v1/runs/{run['id']}/events"))["items"][-1]
    assert (told["type"], told["stage"], told["action"]) == ("stage.decided", STAGE, "approve")
    late = await acme.call("POST", path, {"action": "cancel"})
    assert (late.status, late.body["code"]) == (409, "already-decided")
    assert late.body["decision"]["by"] == "token:acme-tests"


async def test_only_pause_stages_are_decided(served: Served, acme: Client) -> None:
    run = await start(acme)
    for stage in ("build", "nope"):
        answer = await acme.call("POST", f"/api/v1/runs/{run['id']}/stages/{stage}/decision", {"action": "approve"})
        assert (answer.status, answer.body["code"]) == (404, "stage-not-found")


async def test_t86_of_many_at_once_one_decides(served: Served, acme: Client) -> None:
    run = await start(acme)
    path = f"/api/v1/runs/{run['id']}/stages/{STAGE.replace('?', '%3F')}/decision"
    nobody = acme.as_token("")
    answers = await asyncio.gather(
        *(acme.call("POST", path, {"action": action}) for action in ("approve", "cancel") * 4),
        *(nobody.call("POST", link(served, run["id"], action)) for action in ("approve", "cancel") * 4),
    )
    assert sorted(answer.status // 100 for answer in answers) == [2] + [4] * 15
    assert {answer.status for answer in answers if answer.status >= 400} == {409}
    told = (await acme.get(f"/api/v1/runs/{run['id']}/events"))["items"]
    assert [event["type"] for event in told].count("stage.decided") == 1


@pytest.mark.parametrize("state", ["cancelling", "cancelled", "failed"])
async def test_t86_a_run_that_is_over_is_not_decided(served: Served, acme: Client, state: str) -> None:
    run = await start(acme)
    await move(served, run["id"], state)
    path = f"/api/v1/runs/{run['id']}/stages/{STAGE.replace('?', '%3F')}/decision"
    assert (await acme.call("POST", path, {"action": "approve"})).body["code"] == "run-over"
    for method in ("GET", "POST"):
        assert (await acme.as_token("").call(method, link(served, run["id"]))).status == 409


async def test_t87_opening_a_link_decides_nothing(served: Served, acme: Client) -> None:
    run = await start(acme)
    nobody, path = acme.as_token(""), link(served, run["id"])
    for method in ("HEAD", "GET", "GET"):
        page = await nobody.call(method, path)
        assert page.status == 200
    assert "Ship 1 &lt;now&gt;?" in page.body
    assert '<form method="post">' in page.body
    assert "hunter2" not in page.body
    assert "script" not in page.body.replace("description", "")
    assert page.headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert (await acme.get(f"/api/v1/runs/{run['id']}"))["stages"][1]["decision"] is None
    done = await nobody.call("POST", path + ")")
    assert done.status == 200, done.body
    decision = (await acme.get(f"/api/v1/runs/{run['id']}"))["stages"][1]["decision"]
    assert (decision["action"], decision["by"]) == ("approve", "link")
    for method in ("GET", "POST"):
        late = await nobody.call(method, path)
        assert late.status == 409
        assert "was approved by link at" in late.body


async def test_a_page_passes_on_who_decides_and_why(served: Served, acme: Client) -> None:
    run = await start(acme)
    form = aiohttp.FormData({"name": "Ada <b>", "comment": "not today"})
    assert (await acme.as_token("").call("POST", link(served, run["id"], "cancel"), form)).status == 200
    decision = (await acme.get(f"/api/v1/runs/{run['id']}"))["stages"][1]["decision"]
    assert (decision["action"], decision["by"], decision["comment"]) == ("cancel", "link (says: Ada <b>)", "not today")
    page = await acme.as_token("").call("GET", link(served, run["id"]))
    assert "was rejected by link (says: Ada &lt;b&gt;)" in page.body


async def test_t87_links_expire_and_cannot_be_made_up(served: Served, acme: Client) -> None:
    run = await start(acme)
    nobody, good = acme.as_token(""), link(served, run["id"])
    for method in ("GET", "POST"):
        assert (await nobody.call(method, link(served, run["id"], lives=-1))).status == 410
        for bad in (good[:-3], good[:-1] + ("A" if good[-1] != "A" else "B"), "/d/x", "/d/.", "/d/%C3%A4.%C3%A4"):
            assert (await nobody.call(method, bad)).status == 404, bad
        gone = link(served, str(uuid.uuid4()))
        assert (await nobody.call(method, gone)).status == 404
    assert (await acme.get(f"/api/v1/runs/{run['id']}"))["stages"][1]["decision"] is None


async def test_t87_the_other_link_of_a_page_expires_with_the_opened_one(served: Served, acme: Client) -> None:
    run = await start(acme)
    nobody, path = acme.as_token(""), link(served, run["id"], lives=90)
    for action in ("cancel", "approve", "cancel"):  # from page to page and back
        page = await nobody.call("GET", path)
        (other,) = re.findall(r'href="([\w.-]+)"', page.body)
        path = f"/d/{other}"
        now = served.host.clock.now()
        subject = f"{run['id']}:{STAGE}:{action}"
        assert served.host.vault.open_link("decision", other, now + timedelta(seconds=80)) == subject
        with pytest.raises(UserError, match="expired"):
            served.host.vault.open_link("decision", other, now + timedelta(seconds=92))


async def test_direct_links_decide_when_opened_but_not_when_previewed(served: Served, acme: Client) -> None:
    await apply(acme, WORKFLOW.replace("pause: {", "pause: {links: direct, "))
    run = await start(acme)
    nobody, path = acme.as_token(""), link(served, run["id"])
    assert (await nobody.call("HEAD", path)).status == 200
    assert (await nobody.call("GET", path, headers={"Sec-Purpose": "prefetch"})).status == 200
    assert (await acme.get(f"/api/v1/runs/{run['id']}"))["stages"][1]["decision"] is None
    assert "approved" in (await nobody.call("GET", path)).body
    assert (await acme.get(f"/api/v1/runs/{run['id']}"))["stages"][1]["decision"]["action"] == "approve"


async def test_a_stage_that_names_its_approvers_hears_only_them(served: Served, acme: Client) -> None:
    await apply(acme, WORKFLOW.replace("pause: {", "pause: {approvers: [grace], "))
    run = await start(acme)
    path = f"/api/v1/runs/{run['id']}/stages/{STAGE.replace('?', '%3F')}/decision"
    assert (await acme.call("POST", path, {"action": "approve"})).body["code"] == "not-an-approver"
    for method in ("GET", "POST"):
        refused = await acme.as_token("").call(method, link(served, run["id"]))
        assert refused.status == 403
        assert f"run approve {run['number']} {shlex.quote(STAGE)}" in html.unescape(refused.body)
    made = await acme.ok("POST", "/api/v1/tokens", {"name": "grace", "scopes": ["approve"]})
    assert (await acme.as_token(made["token"]).call("POST", path, {"action": "approve"})).status == 201


# ---------------------------------------------------------------- logs


@pytest.fixture
async def storing(database: str, s3: S3Address, wire: Proxy) -> AsyncIterator[Served]:
    """With object storage."""
    async with serving(database, [TRIGGER, CONSOLE], by_wire(s3, wire)) as served:
        yield served


async def write_log(served: Served, run: str, stored: bytes, tail: bytes, *, complete: bool) -> None:
    """Play the log collector."""
    key, id = f"acme/test/{run}", uuid.UUID(run)
    await served.host.objects.put(key, stored)
    async with served.host.database.transaction() as tx:
        await tx.connection.execute(
            "INSERT INTO logs (container, run, job, attempt, tenant, stage, holder, size, segments, completed_at) "
            "VALUES ('c', $1, 'compile', 1, 'acme', 'build', 'test', $2, $3, CASE WHEN $4 THEN now() END) "
            "ON CONFLICT (container) DO UPDATE SET size = excluded.size, completed_at = excluded.completed_at",
            id, len(stored) + len(tail), [{"offset": 0, "size": len(stored), "key": key}], complete,
        )  # fmt: skip
        if tail:
            await tx.connection.execute(
                "INSERT INTO log_tails (container, start, data) VALUES ('c', $1, $2) "
                "ON CONFLICT (container, start) DO UPDATE SET data = excluded.data",
                len(stored), tail,
            )  # fmt: skip
    served.host.bus.nudge(f"acme.log.{run}.compile.1", b"")


@pytest.fixture
async def logged(storing: Served) -> tuple[Client, str, str]:
    """(client, run, path of a log that can be written)"""
    acme = await storing.tenant("acme")
    await apply(acme)
    run = (await start(acme))["id"]
    await take_up(storing, run)
    await storing.host.database.execute("UPDATE jobs SET state = 'running' WHERE name = 'compile'")
    return acme, run, f"/api/v1/runs/{run}/jobs/compile/log"


async def test_t61_any_part_of_a_log_can_be_read(storing: Served, logged: tuple[Client, str, str]) -> None:
    acme, run, path = logged
    stored, tail = b"".join(b"line %06d\n" % number for number in range(60_000)), b"the end\n"
    await write_log(storing, run, stored, tail, complete=True)
    whole = stored + tail
    answer = await acme.call("GET", path)
    assert answer.body.encode() == whole
    assert answer.headers["Hubflow-Log-Complete"] == "true"
    for header, start, end in (
        ("bytes=0-9", 0, 10), ("bytes=659990-660005", 659_990, 660_006), ("bytes=-5", len(whole) - 5, len(whole)),
        ("bytes=660000-", 660_000, len(whole)), ("bytes=100-9999999", 100, len(whole)),
    ):  # fmt: skip
        part = await acme.call("GET", path, headers={"Range": header})
        assert (part.status, part.body.encode()) == (206, whole[start:end]), header
        assert part.headers["Content-Range"] == f"bytes {start}-{end - 1}/{len(whole)}"
    assert (await acme.call("GET", path, headers={"Range": "bytes=9999999-"})).status == 416
    assert (await acme.call("GET", path, headers={"Range": "lines=1-2"})).body.encode() == whole
    assert (await acme.call("GET", f"{path}?offset=660000")).body.encode() == whole[660_000:]
    assert (await acme.call("GET", f"{path}?tail=8")).body == "the end\n"
    assert (await acme.call("GET", f"{path}?offset=99999999")).body == ""
    assert (await acme.call("GET", f"{path}?attempt=7")).status == 404
    assert (await acme.call("GET", path.replace("compile", "nope"))).status == 404


async def test_t63_a_follower_gets_start_and_tail_once_in_order(
    storing: Served, logged: tuple[Client, str, str]
) -> None:
    acme, run, path = logged
    headers = {"Authorization": f"Bearer {acme.token}"}
    async with acme.session.get(f"{acme.url}{path}?follow=true", headers=headers) as response:
        await write_log(storing, run, b"one\n", b"two\n", complete=False)
        assert await response.content.readexactly(8) == b"one\ntwo\n"
        begun = time.monotonic()
        await write_log(storing, run, b"one\n", b"two\nthree\n", complete=False)
        assert await response.content.readexactly(6) == b"three\n"
        assert time.monotonic() - begun < 0.5
        await write_log(storing, run, b"one\n", b"two\nthree\nfour\n", complete=True)
        assert await response.content.read() == b"four\n"
    assert (await acme.call("GET", f"{path}?follow=true&offset=4")).body == "two\nthree\nfour\n"


async def test_a_log_that_never_was_ends_at_once(storing: Served, logged: tuple[Client, str, str]) -> None:
    acme, _, path = logged
    await storing.host.database.execute("UPDATE jobs SET state = 'skipped', attempt = 0 WHERE name = 'compile'")
    answer = await acme.call("GET", f"{path}?follow=true")
    assert (answer.status, answer.body, answer.headers["Hubflow-Log-Complete"]) == (200, "", "true")


async def test_a_websocket_resumes_where_it_was(storing: Served, logged: tuple[Client, str, str]) -> None:
    acme, run, path = logged
    headers = {"Authorization": f"Bearer {acme.token}"}
    await write_log(storing, run, b"one\n", b"two\n", complete=False)
    async with acme.session.ws_connect(f"{acme.url}{path}/stream", headers=headers) as socket:
        assert await socket.receive_json() == {"attempt": 1, "offset": 0}
        assert await socket.receive_bytes() == b"one\ntwo\n"
    await write_log(storing, run, b"one\n", b"two\nthree\n", complete=True)
    async with acme.session.ws_connect(f"{acme.url}{path}/stream?offset=8", headers=headers) as socket:
        assert await socket.receive_json() == {"attempt": 1, "offset": 8}
        assert await socket.receive_bytes() == b"three\n"
        assert await socket.receive_json() == {"complete": True, "offset": 14, "truncated": False}
        assert (await socket.receive()).type in {aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED}


async def test_a_websocket_whose_log_cannot_be_read_is_closed(
    storing: Served, wire: Proxy, logged: tuple[Client, str, str]
) -> None:
    acme, run, path = logged
    await write_log(storing, run, b"one\n", b"", complete=True)
    wire.refuse()
    headers = {"Authorization": f"Bearer {acme.token}"}
    async with asyncio.timeout(20), acme.session.ws_connect(f"{acme.url}{path}/stream", headers=headers) as socket:
        assert await socket.receive_json() == {"attempt": 1, "offset": 0}
        end = await socket.receive()
        assert (end.type, end.data) == (aiohttp.WSMsgType.CLOSE, aiohttp.WSCloseCode.INTERNAL_ERROR)
    await until(lambda: readers() == 0)


@pytest.mark.parametrize("kind", ["stream", "follow"])
async def test_t60_a_reader_that_takes_nothing_is_let_go(
    storing: Served, logged: tuple[Client, str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:  # fmt: skip
    acme, run, path = logged
    monkeypatch.setattr(http, "STUCK_SECONDS", 0.2)
    monkeypatch.setattr(logs, "CLOSE_SECONDS", 0.2)
    await write_log(storing, run, bytes(20_000_000), b"", complete=True)
    before = connections()
    async with unread(acme, f"{path}/stream" if kind == "stream" else f"{path}?follow=true", kind == "stream"):
        await until(lambda: readers() == 1)
        await until(lambda: readers() == 0)
        await until(lambda: connections() <= before)
    assert not caplog.records


async def test_t60_a_reader_that_takes_nothing_costs_little_and_slows_nobody(
    storing: Served, logged: tuple[Client, str, str]
) -> None:
    acme, run, path = logged
    headers = {"Authorization": f"Bearer {acme.token}"}
    line = b"a line of a long log\n"
    amount = 50_000_000 // len(line)
    expected = hashlib.sha256(line * amount).digest()
    await write_log(storing, run, line * amount, b"", complete=True)

    part = await acme.call("GET", path, headers={"Range": "bytes=0-4999999"})
    assert part.status == 206  # what a reader costs at first is had by now
    async with contextlib.AsyncExitStack() as stack:
        before = resident()
        for websocket in (True, False) * 3:
            await stack.enter_async_context(
                unread(acme, f"{path}/stream" if websocket else f"{path}?follow=true", websocket)
            )
        await until(lambda: readers() == 6)
        digest = hashlib.sha256()
        async with acme.session.get(f"{acme.url}{path}?follow=true", headers=headers) as response:
            async for chunk in response.content.iter_any():
                digest.update(chunk)
        assert digest.digest() == expected
        assert readers() == 6
        assert resident() - before < 20_000_000


def resident() -> int:
    """Bytes of memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def connections() -> int:
    """How many connections the server of this process serves."""
    return sum("RequestHandler.start" in repr(task.get_coro()) for task in asyncio.all_tasks())


@contextlib.asynccontextmanager
async def unread(client: Client, path: str, websocket: bool) -> AsyncIterator[None]:
    """A request whose answer nobody reads; a small window, so that little of it is under way."""
    at = urlsplit(client.url)
    with sockets.socket() as raw:
        raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
        raw.setblocking(False)
        await asyncio.get_running_loop().sock_connect(raw, (at.hostname, at.port))
        lines = [f"GET {path} HTTP/1.1", "Host: test", f"Authorization: Bearer {client.token}"]
        if websocket:
            key = base64.b64encode(bytes(16)).decode()
            lines += [
                "Connection: Upgrade",
                "Upgrade: websocket",
                "Sec-WebSocket-Version: 13",
                f"Sec-WebSocket-Key: {key}",
            ]
        await asyncio.get_running_loop().sock_sendall(raw, ("\r\n".join(lines) + "\r\n\r\n").encode())
        yield


async def test_followers_end_with_their_token(
    storing: Served, logged: tuple[Client, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    acme, run, path = logged
    monkeypatch.setattr(followers, "TOKEN_SECONDS", 0.1)
    await write_log(storing, run, b"one\n", b"", complete=False)
    made = await acme.ok("POST", "/api/v1/tokens", {"name": "viewer", "scopes": ["read"]})
    get, headers = acme.session.get, {"Authorization": f"Bearer {made['token']}"}
    async with (
        get(f"{acme.url}/api/v1/runs/{run}/events?follow=true", headers=headers) as events,
        get(f"{acme.url}{path}?follow=true", headers=headers) as log,
        acme.session.ws_connect(f"{acme.url}{path}/stream", headers=headers) as socket,
    ):
        assert await socket.receive_json() == {"attempt": 1, "offset": 0}
        assert await socket.receive_bytes() == b"one\n"
        assert await log.content.readexactly(4) == b"one\n"
        assert b"run.created" in await events.content.readuntil(b"\n\n")
        await acme.ok("DELETE", f"/api/v1/tokens/{made['id']}")
        assert await what_comes(events) == (b"", False)
        assert await what_comes(log) == (b"", False)
        end = await socket.receive(timeout=20)
        assert (end.type, end.data) == (aiohttp.WSMsgType.CLOSE, aiohttp.WSCloseCode.POLICY_VIOLATION)
    await until(lambda: readers() == 0)


async def test_t60_viewers_who_leave_are_forgotten(storing: Served, logged: tuple[Client, str, str]) -> None:
    acme, run, path = logged
    await write_log(storing, run, b"one\n", b"", complete=False)
    headers = {"Authorization": f"Bearer {acme.token}"}
    viewers = [await acme.session.ws_connect(f"{acme.url}{path}/stream", headers=headers) for _ in range(100)]
    await until(lambda: readers() == 100)
    for socket in viewers:
        await socket.close()
    await until(lambda: readers() == 0)
    assert (await acme.call("GET", path)).status == 200  # and whoever comes next is served


async def test_artifacts_are_listed_and_fetched(storing: Served, logged: tuple[Client, str, str]) -> None:
    acme, run, _ = logged
    body = bytes(range(256)) * 5000
    await storing.host.objects.put("acme/artifact", body)
    await storing.host.database.execute(
        "INSERT INTO artifacts (run, job, attempt, name, tenant, object_key, bytes, sha256, files) "
        "VALUES ($1, 'compile', 1, 'dist/all', 'acme', 'acme/artifact', $2, 'abc', 3)",
        uuid.UUID(run), len(body),
    )  # fmt: skip
    (artifact,) = (await acme.get(f"/api/v1/runs/{run}/artifacts"))["items"]
    assert (artifact["name"], artifact["bytes"], artifact["files"]) == ("dist/all", len(body), 3)
    headers = {"Authorization": f"Bearer {acme.token}"}
    async with acme.session.get(acme.url + artifact["url"], headers=headers) as response:
        assert (response.status, await response.read()) == (200, body)
    async with acme.session.get(acme.url + artifact["url"], headers=headers | {"Range": "bytes=10-19"}) as response:
        assert (response.status, await response.read()) == (206, body[10:20])
    assert (await acme.call("GET", f"/api/v1/runs/{run}/artifacts/compile/nope")).body[
        "hint"
    ] == "the run has: compile/dist/all"
    await storing.host.objects.delete(["acme/artifact"])
    assert (await acme.call("GET", artifact["url"])).status == 410


@pytest.mark.parametrize("body", [b"", b"a few bytes"])
async def test_an_artifact_that_is_shorter_than_its_job_has_told_is_a_broken_answer(
    storing: Served, logged: tuple[Client, str, str], body: bytes
) -> None:
    acme, run, _ = logged
    await storing.host.objects.put("acme/artifact", body)
    await storing.host.database.execute(
        "INSERT INTO artifacts (run, job, attempt, name, tenant, object_key, bytes, sha256, files) "
        "VALUES ($1, 'compile', 1, 'dist', 'acme', 'acme/artifact', 1000000, '', 3)",
        uuid.UUID(run),
    )
    headers = {"Authorization": f"Bearer {acme.token}"}
    async with acme.session.get(f"{acme.url}/api/v1/runs/{run}/artifacts/compile/dist", headers=headers) as response:
        assert response.content_length == 1_000_000
        assert await what_comes(response) == (body, False)


async def test_thubs_files_are_stored_by_tag(storing: Served, logged: tuple[Client, str, str]) -> None:
    acme, _, _ = logged
    path, body = "/api/v1/files/ns/repo/some%20dir/a%2Bb.tar.bz", bytes(range(256)) * 10_000
    session, basic = acme.session, {"Authorization": aiohttp.encode_basic_auth("whoever", acme.token)}
    async with session.put(f"{acme.url}{path}?tag=1.0", data=body, headers=basic) as response:
        assert response.status == 201
        stored = await response.json()
    assert (stored["url"], stored["size"]) == ("ns/repo/some dir/a+b.tar.bz:1.0", len(body))
    async with session.get(f"{acme.url}{path}?tag=1.0", headers=basic) as response:
        assert (response.status, await response.read()) == (200, body)
    damaged = {"Content-Digest": "sha-256=:" + base64.b64encode(b"0" * 32).decode() + ":"}
    assert (await acme.call("PUT", f"{path}?tag=2.0", body, headers=damaged)).body["code"] == "digest-mismatch"
    assert (await acme.call("GET", f"{path}?tag=2.0")).body["code"] == "file-not-found"
    assert (await acme.call("GET", path)).body["code"] == "file-not-found"
    assert (await acme.call("PUT", f"{path}?tag=..", b"x")).status == 400
    assert (await acme.call("PUT", "/api/v1/files/ns/repo/a%2F..%2Fb", b"x")).status in {404, 422}
    long = "".join(random.Random(1).choices(string.ascii_letters + string.digits, k=3000))
    for place in (f"{long}/repo/a", f"ns/{long}/a"):
        refused = await acme.call("PUT", f"/api/v1/files/{place}", b"x")
        assert (refused.status, refused.body["code"]) == (422, "invalid-path")
        assert "2048" in refused.body["detail"]
    assert (await acme.call("PUT", f"/api/v1/files/{long[:1000]}/{long[:500]}/a", b"x")).status == 201
    other = await storing.tenant("other")
    assert (await other.call("GET", f"{path}?tag=1.0")).status == 404


async def what_comes(response: aiohttp.ClientResponse) -> tuple[bytes, bool]:
    """The rest of a body, and whether that ended as it should."""
    came = b""
    try:
        async with asyncio.timeout(20):
            async for chunk in response.content.iter_any():
                came += chunk
    except aiohttp.ClientPayloadError:
        return came, False
    return came, True


async def test_nothing_but_a_files_bytes_is_ever_in_it(
    storing: Served, wire: Proxy, logged: tuple[Client, str, str]
) -> None:
    """Object storage goes away: a problem document if nothing has been sent yet, else an answer that is seen to be broken."""
    acme, run, log = logged
    path, body = "/api/v1/files/ns/repo/large", bytes(range(256)) * 160_000
    headers = {"Authorization": f"Bearer {acme.token}"}
    async with acme.session.put(acme.url + path, data=body, headers=headers) as response:
        assert response.status == 201
    await write_log(storing, run, body, b"", complete=True)
    for place in (path, log):
        async with acme.session.get(acme.url + place, headers=headers) as response:
            assert response.status == 200
            came = await response.content.readexactly(100_000)
            wire.refuse()
            rest, whole = await what_comes(response)
        assert body.startswith(came + rest)
        assert not whole
        assert (await acme.call("GET", place)).status == 503
        wire.heal()


# ---------------------------------------------------------------- the rest


async def test_dead_events_are_listed_and_replayed(served: Served, acme: Client) -> None:
    run = await start(acme)
    body = await served.host.database.fetchrow("SELECT id, body FROM events WHERE run = $1", uuid.UUID(run["id"]))
    await served.host.database.execute(
        "INSERT INTO dead_events (id, event, queue, topic, body, reason, tries) "
        "VALUES ($1, $1, 'nobody', 'a.b.c', $2, 'why', 3)",
        body["id"], body["body"],
    )  # fmt: skip
    (dead,) = (await served.operator.get("/api/v1/dead-events"))["items"]
    assert (dead["reason"], dead["event"]["type"]) == ("why", "run.created")
    assert (await acme.call("GET", "/api/v1/dead-events")).status == 403
    assert await served.operator.ok("POST", "/api/v1/dead-events/replay", {"ids": [dead["id"]]}) == {
        "replayed": [dead["id"]]
    }
    assert (await served.operator.get("/api/v1/dead-events"))["items"] == []


async def test_a_console_apart_from_trigger_passes_its_requests_on(database: str, served: Served, acme: Client) -> None:
    key = {"HUBFLOW_CONSOLE_TRIGGER_URL": served.url}
    async with serving(database, [CONSOLE], key) as alone:
        through = Client(alone.operator.session, alone.url, acme.token)
        started = await through.call("POST", "/api/v1/workflows/ship/runs", {"inputs": {"version": "2"}})
        assert started.status == 201
        assert (await through.get(started.body["url"]))["inputs"]["version"] == "2"
        refused = await through.call("POST", "/hooks/acme/ship/github", {"ref": "x"})
        assert (refused.status, refused.body["code"]) == (401, "bad-signature")
        assert (await through.call("POST", "/api/v1/workflows/nope/runs", {})).status == 404
        paths = (await through.get("/api/v1/openapi.json"))["paths"]
        assert {"/api/v1/workflows/{workflow}/runs", "/hooks/{tenant}/{workflow}/{source}"} <= paths.keys()


async def test_a_trigger_that_is_away_is_told_as_such(database: str) -> None:
    async with serving(database, [CONSOLE], {"HUBFLOW_CONSOLE_TRIGGER_URL": "http://127.0.0.1:1"}) as alone:
        acme = await alone.tenant("acme")
        answer = await acme.call("POST", "/api/v1/workflows/ship/runs", {})
        assert (answer.status, answer.body["code"]) == (503, "unavailable")


async def test_what_is_not_there_is_a_problem_document(acme: Client) -> None:
    for method, path, status in (("GET", "/api/v1/nothing", 404), ("PATCH", "/api/v1/runs", 405), ("GET", "/", 404)):
        answer = await acme.call(method, path)
        assert (answer.status, answer.body["status"]) == (status, status)
        assert answer.headers["Content-Type"].startswith("application/problem+json")


async def test_every_route_is_described(served: Served, acme: Client) -> None:
    document = await acme.get("/api/v1/openapi.json")
    jsonschema.Draft202012Validator.check_schema(document["components"]["schemas"])
    described = {(method.upper(), path) for path, operations in document["paths"].items() for method in operations}
    served_routes = {(route.method, re.sub(r":[^}]+", "", route.path)) for route in served.routes}
    assert len(served_routes) > 40
    assert served_routes == described
    operations = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(set(operations)) == len(operations)


async def test_real_answers_are_as_described(served: Served, acme: Client) -> None:
    run = await start(acme)
    await take_up(served, run["id"])
    await acme.ok("PUT", "/api/v1/secrets/A", {"value": "x"})
    for path in (
        "/api/v1/tenant", "/api/v1/tokens", "/api/v1/secrets", "/api/v1/workflows", "/api/v1/workflows/ship",
        "/api/v1/workflows/ship/versions", "/api/v1/workflows/ship/versions/1", "/api/v1/workflows/ship/hook", "/api/v1/runs",
        f"/api/v1/runs/{run['id']}", f"/api/v1/runs/{run['id']}/events", f"/api/v1/runs/{run['id']}/jobs/compile",
        f"/api/v1/runs/{run['id']}/artifacts", "/api/v1/audit", "/api/v1/deliveries", "/api/v1/runs/0",
    ):  # fmt: skip
        await acme.call("GET", path)
    await served.operator.get("/api/v1/tenants")
    await acme.ok("PUT", "/api/v1/subscription", {"url": "https://example.org/hook"})
    await acme.ok(
        "POST", f"/api/v1/runs/{run['id']}/stages/{STAGE.replace('?', '%3F')}/decision", {"action": "approve"}
    )
    await acme.ok("POST", f"/api/v1/runs/{run['id']}/cancel", {})
    await acme.ok("DELETE", "/api/v1/subscription")
    document = await acme.get("/api/v1/openapi.json")
    assert len(acme.seen) > 20
    for method, path, answer in acme.seen:
        schema = _schema_of(document, method, path.partition("?")[0], answer.status)
        validator = jsonschema.Draft202012Validator(
            {**schema, "components": document["components"]}, format_checker=jsonschema.FormatChecker()
        )
        validator.validate(answer.body)


def _schema_of(document: dict[str, Any], method: str, path: str, status: int) -> dict[str, Any]:
    """The schema of an answer; literal paths before those with parameters."""
    for template in sorted(document["paths"], key=lambda each: each.count("{")):
        if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), path) and method.lower() in document["paths"][template]:
            responses = document["paths"][template][method.lower()]["responses"]
            if str(status) in responses:
                return next(iter(responses[str(status)]["content"].values()))["schema"]
            if status < 400:
                continue
            return document["components"]["schemas"]["Problem"]
    raise AssertionError(f"{method} {path} {status} is not described")
