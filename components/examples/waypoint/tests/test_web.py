"""The service, asked over real HTTP."""

import http.client
import json
import tempfile
import threading
import unittest
from pathlib import Path

from waypoint.codes import encode
from waypoint.store import Store
from waypoint.web import BadLinkError, Server, check_url


class Web(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        store = Store(Path(folder.name) / "links.jsonl")
        self.addCleanup(store.close)
        self.server = Server(("127.0.0.1", 0), store, quiet=True)
        self.addCleanup(self.server.server_close)
        thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(self.server.shutdown)

    def ask(self, method: str, path: str, body: str = "", **headers: str) -> tuple[int, dict[str, str], str]:
        connection = http.client.HTTPConnection(*self.server.server_address[:2], timeout=5)
        try:
            names = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body or None, names)
            answer = connection.getresponse()
            return answer.status, dict(answer.headers), answer.read().decode()
        finally:
            connection.close()

    def test_a_link_leads_there(self) -> None:
        body = json.dumps({"url": "https://example.org/?a=1&b=2"})
        status, _, text = self.ask("POST", "/links", body, Content_Type="application/json")
        self.assertEqual(status, 201)
        status, headers, _ = self.ask("GET", "/" + json.loads(text)["code"])
        self.assertEqual((status, headers["Location"]), (302, "https://example.org/?a=1&b=2"))

    def test_the_form_answers_with_a_page(self) -> None:
        form = "url=https%3A%2F%2Fexample.org%2F"
        status, _, text = self.ask(
            "POST", "/links", form, Accept="text/html", Content_Type="application/x-www-form-urlencoded"
        )
        self.assertEqual(status, 200)
        self.assertIn(encode(0), text)

    def test_a_plus_shows_where_it_would_lead(self) -> None:
        self.ask("POST", "/links", "url=https://example.org/x")
        status, _, text = self.ask("GET", f"/{encode(0)}+")
        self.assertEqual((status, json.loads(text)), (200, {"url": "https://example.org/x"}))

    def test_unknown_and_mistyped_codes(self) -> None:
        for path in (f"/{encode(5)}", "/favicon.ico", "/links/x"):
            self.assertEqual(self.ask("GET", path)[0], 404)

    def test_bad_bodies_are_refused(self) -> None:
        for body in ("", "{", "[]", '{"link": 1}', '{"url": "javascript:alert(1)"}'):
            with self.subTest(body):
                self.assertEqual(self.ask("POST", "/links", body, Content_Type="application/json")[0], 400)

    def test_urls_that_are_not_shortened(self) -> None:
        for url in ("", "ftp://example.org", "https://", "//example.org", "https://a/\r\nSet-Cookie: x", "http://a/ b"):
            with self.subTest(url), self.assertRaises(BadLinkError):
                check_url(url)

    def test_machines_can_ask_how_it_is(self) -> None:
        self.assertEqual(self.ask("GET", "/healthz")[0], 200)
        self.assertEqual(json.loads(self.ask("GET", "/version")[2])["links"], 0)


if __name__ == "__main__":
    unittest.main()
