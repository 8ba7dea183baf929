"""Links in a file: one JSON line each, appended and synced before anybody hears of the code."""

import json
import os
import threading
from pathlib import Path

from waypoint import codes


class Store:
    """All links in memory, and on disk in the order they were made. Safe for many threads of one process."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._urls: list[str] = []
        self._numbers: dict[str, int] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab+", buffering=0)
        self._load()

    def __len__(self) -> int:
        return len(self._urls)

    def add(self, url: str) -> tuple[str, bool]:
        """The code of a URL, and whether it is new. The same URL always gets the same code."""
        with self._lock:
            number = self._numbers.get(url)
            if number is not None:
                return codes.encode(number), False
            number = len(self._urls)
            code = codes.encode(number)
            self._file.write(json.dumps({"url": url}).encode() + b"\n")
            os.fsync(self._file.fileno())
            self._urls.append(url)
            self._numbers[url] = number
            return code, True

    def find(self, code: str) -> str | None:
        """The URL behind a code, or None if no link has it. Raises codes.BadCodeError for what cannot be a code."""
        number = codes.decode(code)
        return self._urls[number] if number < len(self._urls) else None

    def close(self) -> None:
        self._file.close()

    def _load(self) -> None:
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        # A crash in the middle of a write leaves half a line, whose code nobody was told: it is cut off.
        self._file.truncate(whole)
        for line in content[:whole].splitlines():
            url = json.loads(line)["url"]
            self._numbers[url] = len(self._urls)
            self._urls.append(url)
