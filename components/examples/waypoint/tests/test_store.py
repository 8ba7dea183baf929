"""Links survive a restart, and a crash in the middle of a write."""

import tempfile
import threading
import unittest
from pathlib import Path

from waypoint.codes import encode
from waypoint.store import Store


class Stores(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / "data" / "links.jsonl"

    def open(self) -> Store:
        store = Store(self.path)
        self.addCleanup(store.close)
        return store

    def test_a_link_is_found_again(self) -> None:
        store = self.open()
        code, new = store.add("https://example.org/a")
        self.assertTrue(new)
        self.assertEqual(store.find(code), "https://example.org/a")

    def test_the_same_url_keeps_its_code(self) -> None:
        store = self.open()
        first, _ = store.add("https://example.org/a")
        again, new = store.add("https://example.org/a")
        self.assertEqual((again, new, len(store)), (first, False, 1))

    def test_a_code_that_nobody_was_given(self) -> None:
        self.assertIsNone(self.open().find(encode(0)))

    def test_links_survive_a_restart(self) -> None:
        code, _ = self.open().add("https://example.org/b")
        self.assertEqual(self.open().find(code), "https://example.org/b")

    def test_half_a_line_is_forgotten(self) -> None:
        code, _ = self.open().add("https://example.org/c")
        with self.path.open("ab") as file:
            file.write(b'{"url": "https://exam')
        store = self.open()
        self.assertEqual(len(store), 1)
        store.add("https://example.org/d")
        self.assertEqual(
            [self.open().find(each) for each in (code, encode(1))], ["https://example.org/c", "https://example.org/d"]
        )

    def test_many_threads_never_share_a_code(self) -> None:
        store, codes = self.open(), set()

        def add(first: int) -> None:
            codes.update(store.add(f"https://example.org/{number}")[0] for number in range(first, first + 25))

        threads = [threading.Thread(target=add, args=(first,)) for first in range(0, 200, 25)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual((len(codes), len(self.open())), (200, 200))


if __name__ == "__main__":
    unittest.main()
