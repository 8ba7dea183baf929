"""What a watch has told already, so that it tells each change once; the same on every runtime."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

from shared.runtime.protocol import Observation, Phase
from shared.states import Reason

_ORDER = {Phase.PENDING: 0, Phase.RUNNING: 1, Phase.FINISHED: 2}
"""A container never goes back; an observation that says so is old."""


class Telling:
    """Compares each new observation with the last one told of the same name."""

    def __init__(self) -> None:
        self._told: dict[str, Observation] = {}

    def news(self, name: str, seen: Observation | None) -> Iterator[Observation]:
        """What there is to tell, now that `seen` is known about `name` (None: it is not there)."""
        told = self._told.get(name)
        if told is not None and (seen is None or seen.uid != told.uid):
            del self._told[name]
            # What has not begun may be replaced by who takes over its start, or by the very start that it is part of: whether
            # an attempt whose container is not there is lost, its start or the status watcher's sweep will find.
            if told.phase is Phase.RUNNING:
                yield gone(told)
            told = None
        if seen is not None and (told is None or _ORDER[told.phase] < _ORDER[seen.phase]):
            # The result may be large and has been told; it is not kept.
            self._told[name] = dataclasses.replace(seen, result=None)
            yield seen

    def unfinished(self) -> list[str]:
        """Names told, but not as finished."""
        return [name for name, told in self._told.items() if told.phase is not Phase.FINISHED]

    def names(self) -> list[str]:
        """All names told, and not told as gone."""
        return list(self._told)

    def unknown(self, present: Iterable[str]) -> list[str]:
        """Names that were told and are not present any more, or are present and were never told."""
        return list(self._told.keys() ^ set(present))

    def told(self, name: str, uid: str) -> Phase | None:
        """What was told last of this very container."""
        last = self._told.get(name)
        return last.phase if last is not None and last.uid == uid else None


def gone(last: Observation) -> Observation:
    """The observation that a container has vanished."""
    return Observation(
        last.name,
        last.uid,
        Phase.GONE,
        last.labels,
        reason=Reason.CONTAINER_GONE,
        message="the container was removed before its outcome was known: by hand, or by a cleaning job?",
        started_at=last.started_at,
    )
