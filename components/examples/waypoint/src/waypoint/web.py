"""The HTTP side: a page to make links, a redirect for each, and two addresses for machines.

GET  /            a page with a form            POST /links     {"url": ...} -> {"code", "link"}
GET  /<code>      302 to the URL                GET  /<code>+   where it would lead, without going there
GET  /healthz     200 while it works            GET  /version   {"version", "commit", "links"}
"""

import html
import json
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from waypoint import build_info
from waypoint.codes import BadCodeError
from waypoint.store import Store

MAX_BODY = 16 * 1024
MAX_URL = 2048

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Waypoint</title>
<style>body{{font:1.1em sans-serif;max-width:36em;margin:15vh auto}}input{{font:inherit;width:70%}}</style>
<h1>Waypoint</h1><form method="post" action="/links">
<input name="url" type="url" placeholder="https://…" required autofocus> <button>Shorten</button></form>
<p>{message}</p><hr><small>{links} links · version {version}</small></html>"""


class BadLinkError(ValueError):
    """A URL that we do not shorten; the text says why."""


def check_url(url: str) -> str:
    """`url` if a redirect to it is harmless: http or https, with a host, in one line of printable characters."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise BadLinkError("a link begins with http:// or https:// and names a host")
    if len(url) > MAX_URL:
        raise BadLinkError(f"a link may have {MAX_URL} characters")
    if not url.isprintable() or " " in url:
        raise BadLinkError("a link has no spaces and no line ends")
    return url


class Server(ThreadingHTTPServer):
    """Serves one store. Port 0 takes any free one; see `url`."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], store: Store, *, quiet: bool = False) -> None:
        super().__init__(address, Handler)
        self.store = store
        self.quiet = quiet

    @property
    def url(self) -> str:
        return f"http://{self.server_address[0]}:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server
    timeout = 10

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        pages = {"/": self._page, "/healthz": self._health, "/version": self._version}
        if path in pages:
            pages[path]()
        else:
            self._follow(path[1:])

    def do_POST(self) -> None:
        if urlsplit(self.path).path != "/links":
            self._json(HTTPStatus.NOT_FOUND, {"error": "links are made with POST /links"})
            return
        try:
            code, new = self.server.store.add(check_url(self._url_of_body()))
        except BadLinkError as error:
            self._json(HTTPStatus.BAD_REQUEST, {"error": str(error)})
            return
        link = f"http://{self.headers.get('Host', self.server.url[7:])}/{code}"
        if "html" in self.headers.get("Accept", ""):
            self._page(f'Your link: <a href="{html.escape(link)}">{html.escape(link)}</a>')
        else:
            self._json(HTTPStatus.CREATED if new else HTTPStatus.OK, {"code": code, "link": link})

    def _url_of_body(self) -> str:
        length = self.headers.get("Content-Length") or "0"
        if not length.isdecimal() or int(length) > MAX_BODY:
            raise BadLinkError(f"the body may have {MAX_BODY} bytes")
        body = self.rfile.read(int(length)).decode("utf-8", "replace")
        if "json" not in self.headers.get("Content-Type", ""):
            return parse_qs(body).get("url", [""])[0]
        try:
            return str(json.loads(body)["url"])
        except (ValueError, KeyError, TypeError):
            raise BadLinkError('the body must be JSON: {"url": "https://..."}') from None

    def _follow(self, code: str) -> None:
        try:
            url = self.server.store.find(code.removesuffix("+"))
        except BadCodeError as error:
            self._json(HTTPStatus.NOT_FOUND, {"error": str(error)})
            return
        if url is None:
            self._json(HTTPStatus.NOT_FOUND, {"error": "no link has this code yet"})
        elif code.endswith("+"):
            self._json(HTTPStatus.OK, {"url": url})
        else:
            self._send(HTTPStatus.FOUND, "text/plain", url.encode(), {"Location": url})

    def _page(self, message: str = "") -> None:
        page = PAGE.format(message=message, links=len(self.server.store), version=html.escape(build_info()["version"]))
        self._send(HTTPStatus.OK, "text/html; charset=utf-8", page.encode())

    def _health(self) -> None:
        self._json(HTTPStatus.OK, {"status": "ok"})

    def _version(self) -> None:
        self._json(HTTPStatus.OK, {**build_info(), "links": len(self.server.store)})

    def _json(self, status: HTTPStatus, answer: dict[str, Any]) -> None:
        self._send(status, "application/json", json.dumps(answer).encode() + b"\n")

    def _send(self, status: HTTPStatus, kind: str, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *values: Any) -> None:
        if not self.server.quiet:
            super().log_message(format, *values)
