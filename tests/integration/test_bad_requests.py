"""Requests that no client sends by accident, byte by byte: each gets a 4xx that says why, and none a 500."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import hmac
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta
from urllib.parse import urlencode, urlsplit

import pytest

from services.console.main import SERVICE as CONSOLE
from services.trigger.main import SERVICE as TRIGGER
from shared.vault import new_key
from tests.integration.serving import Client, Served, serving

WORKFLOW = """
name: odd
on: {webhook: true, push: true}
inputs: {TEXT: {default: ""}}
stages: [{name: one, jobs: {only: {script: "true"}}}]
"""
ASKS = "name: asks\nstages: [{name: ask, type: pause, jobs: {tell: {script: 'true'}}}]\n"
NOT_UTF8 = b"\xff\xfe"
MULTIPART = b"multipart/form-data; boundary=b"


def part(disposition: bytes, more: bytes) -> bytes:
    """A body of the type MULTIPART."""
    return b"--b\r\nContent-Disposition: form-data; " + disposition + b"\r\n" + more + b"\r\ntext\r\n--b--\r\n"


@pytest.fixture
async def served(database: str) -> AsyncIterator[Served]:
    async with serving(database, [TRIGGER, CONSOLE]) as served:
        yield served


@pytest.fixture
async def acme(served: Served) -> Client:
    client = await served.tenant("acme")
    await client.ok("PUT", "/api/v1/workflows/odd", WORKFLOW, headers={"Content-Type": "application/yaml"})
    await client.ok("POST", "/api/v1/workflows/odd/runs", {})
    return client


async def status(client: Client, line: str, headers: dict[str, bytes] | None = None, body: bytes = b"") -> int:
    """The status of a request that is sent as it is."""
    at = urlsplit(client.url)
    reader, writer = await asyncio.open_connection(at.hostname, at.port)
    sent = {"Host": b"test", "Connection": b"close", "Authorization": b"Bearer " + client.token.encode()}
    sent |= {"Content-Length": b"%d" % len(body)} if body else {}
    sent |= headers or {}
    head = b"".join(name.encode() + b": " + value + b"\r\n" for name, value in sent.items())
    writer.write(f"{line} HTTP/1.1\r\n".encode() + head + b"\r\n" + body)
    answer = await reader.read()
    writer.close()
    assert b"Traceback" not in answer
    return int(answer.split()[1])


def cursor(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "path",
    [
        "workflows/%00", "workflows/a%00b/versions", "workflows/%00/hook", "runs/1/jobs/%00", "runs/1/jobs/%00/log",
        "runs?workflow=%00", "runs/1/artifacts/%00/b", "runs/1/events?since=9223372036854775808",
        "runs/1/events?since=" + "9" * 30, "runs/1/jobs/only/log?attempt=9999999999", "runs/1/artifacts/a/b?attempt=9999999999",
        "runs/1/jobs/only/log?offset=" + "9" * 30,
    ],
)  # fmt: skip
async def test_what_no_database_can_hold_is_refused_in_addresses(acme: Client, path: str) -> None:
    assert 400 <= await status(acme, f"GET /api/v1/{path}") < 500


@pytest.mark.parametrize(
    "made_up", ["[1e400]", "[1e300]", "[99999999999999999999999]", "[-1]", '["\\u0000"]', '["\\ud800"]', "[" * 3000]
)
async def test_cursors_that_no_list_has_given_are_refused(acme: Client, made_up: str) -> None:
    for path in ("runs", "workflows", "tokens", "secrets", "audit", "deliveries", "workflows/odd/versions"):
        answer = await status(acme, f"GET /api/v1/{path}?cursor={cursor(made_up)}")
        # Any text may be where a list of names was left off.
        assert answer == 400 or (answer == 200 and path in {"workflows", "secrets"}), path
    assert await status(acme, f"GET /api/v1/workflows/odd/versions?cursor={cursor('[99999999999]')}") == 200


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00", "0001-01-01T00:00:00Z"])
async def test_cursors_at_the_ends_of_time_are_no_bugs(acme: Client, time: str) -> None:
    made_up = cursor(json.dumps([time, str(uuid.UUID(int=0))]))
    expected = 200 if time.endswith("Z") else 400
    assert await status(acme, f"GET /api/v1/deliveries?cursor={made_up}") == expected


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (b"application/x-www-form-urlencoded", b"comment=a%00b"),
        (b"application/x-www-form-urlencoded", b"name=%00"),
        (b"application/x-www-form-urlencoded; charset=nonsense", b"comment=a"),
        (MULTIPART, part(b'name="comment"', b"Content-Transfer-Encoding: x\r\n")),
        (MULTIPART, part(b'name="comment"', b"A: b\r\n" * 500)),
        (MULTIPART, part(b'name="comment"', b"A: " + b"b" * 20_000 + b"\r\n")),
        (MULTIPART, part(b'name="comment"; filename="f"', b"Content-Transfer-Encoding: x\r\n")),
        (MULTIPART, part(b'nothing="comment"', b"")),
        (MULTIPART, part(b'name="comment"', b"Content-Type: multipart/mixed; boundary=c\r\n")),
        (b"multipart/form-data", b"x"),
    ],
    ids=range(10),
)  # fmt: skip
async def test_forms_that_are_none_decide_nothing(served: Served, acme: Client, kind: bytes, body: bytes) -> None:
    await acme.ok("PUT", "/api/v1/workflows/asks", ASKS, headers={"Content-Type": "application/yaml"})
    run = await acme.ok("POST", "/api/v1/workflows/asks/runs", {})
    expires = served.host.clock.now() + timedelta(hours=1)
    link = served.host.vault.sign_link("decision", f"{run['id']}:ask:approve", expires)
    assert await status(acme.as_token(""), f"POST /d/{link}", {"Content-Type": kind}, body) == 400
    assert (await acme.get(run["url"]))["stages"][0]["decision"] is None


@pytest.mark.parametrize("name", ["Authorization", "Hubflow-Tenant", "Idempotency-Key"])
async def test_headers_that_are_not_utf8_are_refused(acme: Client, name: str) -> None:
    value = b"Bearer " + NOT_UTF8 if name == "Authorization" else NOT_UTF8
    headers = {"Content-Type": b"application/json", name: value}
    assert await status(acme, "POST /api/v1/workflows/odd/runs", headers, b"{}") == 400


@pytest.mark.parametrize("value", ["²", "9" * 30, "9" * 5000, "-1", "1.5"])
async def test_a_last_event_id_that_is_none_is_ignored(served: Served, acme: Client, value: str) -> None:
    await acme.ok("POST", "/api/v1/runs/1/cancel", {})
    await served.host.database.execute("UPDATE runs SET state = 'cancelled', finished_at = now()")
    headers = {"Last-Event-ID": value.encode()}
    assert await status(acme, "GET /api/v1/runs/1/events?follow=true", headers) == 200


@pytest.mark.parametrize("encoding", [b"gzip", b"deflate", b"zstd"])
async def test_a_body_that_is_not_encoded_as_it_says_is_refused(acme: Client, encoding: bytes) -> None:
    headers = {"Content-Type": b"application/json", "Content-Encoding": encoding}
    assert await status(acme, "PUT /api/v1/workflows/odd", headers, b'{"source": ""}') == 400


@pytest.mark.parametrize(
    "path", ["api/v1/subscription/test", "api/v1/workflows/odd/runs", "hooks/acme/odd/generic", "api/v1/nothing"]
)
@pytest.mark.parametrize("size", [11, 1_000_000])
async def test_a_body_that_is_not_gzip_is_answered_in_words_and_not_logged(
    acme: Client, caplog: pytest.LogCaptureFixture, path: str, size: int
) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    for _ in range(3):  # on connections that go on, where they can
        answer = await acme.call("POST", f"/{path}", b"{" * size, headers=headers)
        assert answer.headers["Content-Type"].startswith("application/problem+json")
        if path == "api/v1/nothing":
            assert answer.status == 404
        else:
            assert (answer.status, answer.body["code"]) == (400, "invalid-body")
            assert "is not gzip" in answer.body["detail"]
    assert not caplog.records


async def test_a_body_that_is_not_gzip_is_told_apart_from_a_trigger_that_does_not_answer(database: str) -> None:
    key = {"HUBFLOW_SECRET_KEY": new_key()}
    async with AsyncExitStack() as stack:
        trigger = await stack.enter_async_context(serving(database, [TRIGGER], key))
        key["HUBFLOW_CONSOLE_TRIGGER_URL"] = trigger.url
        console = await stack.enter_async_context(serving(database, [CONSOLE], key))
        client = await console.tenant("acme")
        await client.ok("PUT", "/api/v1/workflows/odd", WORKFLOW, headers={"Content-Type": "application/yaml"})
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        for size in (2, 1_000_000):
            answer = await client.call("POST", "/api/v1/workflows/odd/runs", b"{" * size, headers=headers)
            assert (answer.status, answer.body["code"]) == (400, "invalid-body")
        body = gzip.compress(b'{"inputs": {"TEXT": "small"}}')
        run = await client.ok("POST", "/api/v1/workflows/odd/runs", body, headers=headers)
        assert (await client.get(run["url"]))["inputs"] == {"TEXT": "small"}


@pytest.mark.parametrize(
    ("line", "header"),
    [("GET http://[::1", b""), ("GET \x01", b""), ("GET /healthz", b"a" * 9000), ("GET /" + "a" * 9000, b"")],
    ids=["no address", "no text", "long header", "long address"],
)
async def test_what_is_no_http_is_not_logged(
    acme: Client, caplog: pytest.LogCaptureFixture, line: str, header: bytes
) -> None:
    assert await status(acme, line, {"X": header}) == 400
    assert not caplog.records


async def test_text_that_cannot_be_kept_is_refused_in_bodies(acme: Client) -> None:
    for text in ("a\0b", "\ud800"):
        body = json.dumps({"inputs": {"TEXT": text}})
        answer = await acme.call("POST", "/api/v1/workflows/odd/runs", body)
        assert (answer.status, answer.body["code"]) == (400, "invalid-body")
    plain = r"a\u0000b"  # six characters that only look like it
    run = await acme.ok("POST", "/api/v1/workflows/odd/runs", {"inputs": {"TEXT": plain}})
    assert (await acme.get(run["url"]))["inputs"] == {"TEXT": plain}


@pytest.mark.parametrize("form", [False, True])
async def test_text_that_cannot_be_kept_is_replaced_in_hooks(acme: Client, form: bool) -> None:
    """The sender is another system: nobody could mend its payload."""
    text, kind = json.dumps({"TEXT": "a\0b\ud800c", "more": [{"\0": "\udfff"}]}), b"application/json"
    if form:
        text, kind = urlencode({"payload": text}), b"application/x-www-form-urlencoded"
    secret = (await acme.get("/api/v1/workflows/odd/hook"))["secret"]
    signature = hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest().encode()
    headers = {"Content-Type": kind, "X-Hubflow-Signature-256": b"sha256=" + signature}
    assert await status(acme, "POST /hooks/acme/odd/generic", headers, text.encode()) == 201
    assert (await acme.get("/api/v1/runs/@latest"))["inputs"] == {"TEXT": "a\ufffdb\ufffdc"}


@pytest.mark.parametrize(
    ("source", "name", "prefix"),
    [
        ("github", "X-Hub-Signature-256", b"sha256="),
        ("gitea", "X-Gitea-Signature", b""),
        ("generic", "X-Hubflow-Signature-256", b"sha256="),
    ],
)
async def test_t69_a_signature_of_any_bytes_is_only_wrong(acme: Client, source: str, name: str, prefix: bytes) -> None:
    headers = {"Content-Type": b"application/json", name: prefix + NOT_UTF8}
    assert await status(acme.as_token(""), f"POST /hooks/acme/odd/{source}", headers, b"{}") == 400
    assert await status(acme.as_token(""), f"POST /hooks/%00/odd/{source}", headers, b"{}") == 400
