"""A server of `hubflow dev` that dies is started again."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cli import dev_servers
from cli.dev_servers import FIRST_PAUSE, LONGEST_PAUSE, WELL_SECONDS, Kept, kept_up, next_pause
from shared.embedded.process import Launch, Server, holds
from shared.errors import TemporaryError


class Place:
    """Opens `sleep` as a server, and fails to do so while `broken`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.opened: list[Server] = []
        self.broken = ""

    @asynccontextmanager
    async def open(self) -> AsyncIterator[str]:
        if self.broken:
            raise TemporaryError(self.broken)
        server = Server.start(Launch(["/bin/sleep", "60"], self.folder / "log", die_with_parent=9))
        self.opened.append(server)
        try:
            yield "address"
        finally:
            await server.end(9, patience=5)

    @property
    def kept(self) -> Kept[str]:
        return Kept("it", self.folder, self.open, lambda: self.opened[-1:])


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(dev_servers, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(dev_servers, "FIRST_PAUSE", 0.01)
    return Place(tmp_path)


async def test_it_lives_again_and_ends_with_the_block(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    async with kept_up(place.kept) as address:
        assert address == "address"
        for lives in (2, 3):
            place.opened[-1].signal(9)
            assert await holds(lambda lives=lives: len(place.opened) == lives, 10)
        assert place.opened[-1].alive()
        assert await holds(lambda: "it runs again" in capsys.readouterr().err, 10)
    assert not any(server.alive() for server in place.opened)


async def test_a_first_start_that_fails_is_told_and_a_later_one_is_tried_again(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    place.broken = "the disk is full"
    with pytest.raises(TemporaryError, match="the disk is full"):
        async with kept_up(place.kept):
            pass
    place.broken = ""
    async with kept_up(place.kept):
        place.broken = "the disk is full"
        place.opened[-1].signal(9)
        assert await holds(lambda: "does not start" in capsys.readouterr().err, 10)
        place.broken = ""
        assert await holds(lambda: len(place.opened) == 2, 10)


async def test_nothing_is_started_where_the_data_are_gone(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.folder /= "gone"
    place.folder.mkdir()
    async with kept_up(place.kept):
        subprocess.run(["rm", "-r", str(place.folder)], check=True)
        place.opened[-1].signal(9)
        assert await holds(lambda: "is gone" in capsys.readouterr().err, 10)
        await asyncio.sleep(0)
        assert len(place.opened) == 1


def test_the_pause_grows_and_is_forgotten_once_the_server_is_well() -> None:
    pauses = [0.0]
    for _ in range(9):
        pauses.append(next_pause(pauses[-1], WELL_SECONDS - 1))
    assert pauses[1:4] == [FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE]
    assert pauses[-1] == LONGEST_PAUSE
    assert next_pause(LONGEST_PAUSE, WELL_SECONDS + 1) == 0
