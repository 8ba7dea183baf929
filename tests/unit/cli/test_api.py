"""The client against a small real HTTP server."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

from cli import logs
from cli.api import Api, Refused, Unreachable
from cli.context import Context
from cli.failure import UNREACHABLE, USAGE, Failure
from cli.main import main


@contextmanager
def server(answer):
    """`answer(handler)` writes what it wants; requests are kept in `seen`."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_all(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            seen.append((self.command, self.path, dict(self.headers), body))
            answer(self)

        do_GET = do_POST = do_PUT = do_DELETE = handle_all  # noqa: N815 -- the library calls them so

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_address[1]}", seen
        finally:
            listening.shutdown()
            thread.join()


def send(handler, status, body, kind="application/json", **headers):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    handler.send_response(status)
    for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **headers}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(data)


def test_a_request_carries_token_and_tenant_and_quotes_names():
    with server(lambda handler: send(handler, 200, {"items": []})) as (url, seen):
        Api(Context(url, "hf_t", "acme")).get("workflows", "a/b ü", limit=3, cursor=None, state="")
    method, path, headers, _ = seen[0]
    assert (method, path) == ("GET", "/api/v1/workflows/a%2Fb%20%C3%BC?limit=3")
    assert headers["Authorization"] == "Bearer hf_t"
    assert headers["Hubflow-Tenant"] == "acme"


def test_a_problem_document_becomes_what_happened_and_a_hint():
    problem = {"status": 404, "code": "run-not-found", "detail": "there is no run 7", "hint": "`hubflow run list`"}
    served = server(lambda handler: send(handler, 404, problem, "application/problem+json"))
    with served as (url, _), pytest.raises(Refused) as caught:
        Api(Context(url)).get("runs", "7")
    error = caught.value
    assert (error.message, error.hint, error.code, error.exit_code) == (
        "there is no run 7", "`hubflow run list`", "run-not-found", UNREACHABLE,
    )  # fmt: skip


@pytest.mark.parametrize(("status", "body"), [(404, b"<html>nothing</html>"), (502, b""), (500, b"[1]")])
def test_an_answer_of_something_else_is_no_trace(status, body):
    served = server(lambda handler: send(handler, status, body, "text/html"))
    with served as (url, _), pytest.raises(Refused, match=str(status)):
        Api(Context(url)).get("runs")


def test_broken_json_is_named():
    with server(lambda handler: send(handler, 200, b"{")) as (url, _), pytest.raises(Failure, match="not JSON"):
        Api(Context(url)).get("runs")


def test_nobody_there_says_which_file_named_the_address():
    with pytest.raises(Unreachable) as caught:
        Api(Context("http://127.0.0.1:1", file="/x/.hubflow/context.json")).get("runs")
    assert caught.value.exit_code == UNREACHABLE
    assert "hubflow dev" in caught.value.hint
    assert "/x/.hubflow/context.json" in caught.value.hint


@pytest.mark.parametrize("host", ["a..b", "a" * 70, "\udcff"])
def test_a_host_that_is_none_is_told_in_words(host):
    with pytest.raises(Unreachable):
        Api(Context(f"http://{host}:1")).get("runs")


def test_arguments_that_are_not_utf8_are_told_in_words():
    for path, query in ((("runs", "\udcff"), {}), (("runs",), {"workflow": "\udcff"})):
        with pytest.raises(Failure, match="UTF-8") as caught:
            Api(Context("http://127.0.0.1:1")).get(*path, **query)
        assert caught.value.exit_code == USAGE


def test_an_artifact_that_cannot_be_written_is_told_in_words(monkeypatch, capsys):
    """/proc is a folder that not even root can write to."""
    kept = {"job": "b", "name": "dist", "attempt": 1, "bytes": 0, "sha256": ""}
    with server(lambda handler: send(handler, 200, {"items": [kept]})) as (url, _):
        monkeypatch.setenv("HUBFLOW_URL", url)
        assert main(["artifact", "get", "7", "dist", "-o", "/proc"]) == USAGE
    assert "cannot write to /proc" in capsys.readouterr().err


def test_a_kept_connection_that_was_closed_is_opened_again_and_the_create_keeps_its_key():
    answers = []

    def answer(handler):
        answers.append(handler.headers.get("Idempotency-Key"))
        if len(answers) == 2:
            handler.close_connection = True  # the answer is lost
            handler.connection.close()
            return
        send(handler, 201, {"id": "1"})

    with server(answer) as (url, _):
        api = Api(Context(url))
        api.get("runs")
        assert api.create("workflows", "w", "runs") == {"id": "1"}
    assert answers[0] is None
    assert answers[1]
    assert answers[1] == answers[2]


def test_a_log_whose_connection_is_cut_is_read_on_where_it_was():
    log = bytes(range(256)) * 1000

    def answer(handler):
        offset = int(parse_qs(urlsplit(handler.path).query).get("offset", ["0"])[0])
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(log) - offset))
        handler.end_headers()
        handler.wfile.write(log[offset : offset + 100_000])
        handler.close_connection = True

    with server(answer) as (url, seen):
        assert b"".join(logs.read(Api(Context(url)), "7", "build")) == log
    assert [path.partition("?")[2] for _, path, _, _ in seen] == ["", "offset=100000", "offset=200000"]


def test_pages_are_followed_up_to_the_limit():
    def answer(handler):
        start = 3 if "cursor=next" in handler.path else 0
        items = [{"name": str(number)} for number in range(start, start + 3)]
        send(handler, 200, {"items": items, "next_cursor": "next"})

    with server(answer) as (url, seen):
        found = Api(Context(url)).pages("workflows", limit=5)
    assert [each["name"] for each in found] == ["0", "1", "2", "3", "4"]
    assert len(seen) == 2
