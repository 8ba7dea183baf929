"""Shows a run of the demo as `hubflow run watch --logs` would, and stops where the story goes on."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable

from cli import logs, tree
from cli.api import Api
from cli.waiting import LOG_ENDS_WITHIN, LineScreen, LiveScreen, Screen, news

Until = Callable[[tree.Run], bool]


class Watching:
    """One run on the screen. Its methods may be cancelled: the thread behind them then ends with its next news."""

    def __init__(self, api: Api, run: str) -> None:
        self._api, self._run = api, run
        self._screen: Screen = LineScreen()
        self._live = sys.stdout.isatty()
        self._tails = logs.Tails(api, run, lambda job, line: self._screen.log(job, line))
        self._abandoned = threading.Event()

    async def until(self, reached: Until) -> tree.Run:
        """Show the run until `reached` or its end. Returns its document."""
        try:
            return await asyncio.to_thread(self._show, reached)
        except asyncio.CancelledError:
            self._abandoned.set()
            raise

    def _show(self, reached: Until) -> tree.Run:
        if self._live:
            self._screen = LiveScreen()
        run: tree.Run = {}
        api = self._api.again()
        try:
            for run in news(api, self._run):
                self._screen.update(run)
                for job in tree.jobs(run):
                    if job["attempt"] and job["state"] not in {"waiting", "ready", "skipped"}:
                        self._tails.start(job["name"], job["attempt"])
                if reached(run) or self._abandoned.is_set():
                    break
            if run["state"] in tree.FINAL:
                self._tails.finish(LOG_ENDS_WITHIN)
        finally:
            self._screen.close()
            api.close()
        return run


def is_paused(run: tree.Run) -> bool:
    return str(run["state"]) == "paused"


def never(_: tree.Run) -> bool:
    return False
