"""From what a Docker-compatible engine says about a container to an observation."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from shared.errors import TemporaryError
from shared.runtime import docker_body as body
from shared.runtime.engine import Engine, EngineError, demultiplexed
from shared.runtime.protocol import Observation, Phase
from shared.runtime.results import RESULT_LIMIT, finished, last_words, moment
from shared.states import Reason

PARALLEL = 16
_WAITING = {"created"}
_ENDED = {"exited", "dead"}
_LEAVING = {"removing"}


class Reader:
    """Reads containers of one installation on one engine."""

    def __init__(self, engine: Engine, installation: str) -> None:
        self._engine = engine
        self._installation = installation
        self._slots = asyncio.Semaphore(PARALLEL)

    async def everything(self) -> list[Observation]:
        """All containers, finished ones with their results."""
        seen = await asyncio.gather(*(self.whole(brief) for brief in await self.briefs()))
        return [observation for observation in seen if observation is not None]

    async def briefs(self) -> list[dict[str, Any]]:
        """All containers as the engine's own list has them: without exit codes and results."""
        filters = json.dumps({"label": [f"{body.INSTALLATION}={self._installation}"]})
        query = {"all": "1", "filters": filters}
        try:
            found: list[dict[str, Any]] = await self._engine.call("GET", "/containers/json", query=query)
        except EngineError as error:
            raise TemporaryError(f"the engine cannot list containers: {error}") from error
        return found

    async def whole(self, brief: Mapping[str, Any]) -> Observation | None:
        """The observation for an entry of `briefs`; asks the engine again only if it has ended."""
        name = brief["Names"][0].lstrip("/")
        if brief["State"] in _ENDED or brief["State"] in _LEAVING:
            return await self.inspect(name)
        return living(name, brief["Id"], brief["Labels"] or {}, created=brief["State"] in _WAITING)

    async def inspect(self, name: str) -> Observation | None:
        """One container by name or id; None if there is none of this installation."""
        async with self._slots:
            try:
                found = await self._engine.call("GET", f"/containers/{name}/json")
            except EngineError as error:
                if error.status == 404:
                    return None
                raise TemporaryError(f"the engine cannot describe {name}: {error}") from error
            labels = found["Config"].get("Labels") or {}
            leaving = found["State"]["Status"] in _LEAVING or body.vanishing(found)
            if labels.get(body.INSTALLATION) != self._installation or leaving:
                return None
            if found["State"]["Status"] not in _ENDED:
                created = found["State"]["Status"] in _WAITING
                return living(found["Name"].lstrip("/"), found["Id"], labels, created=created)
            return await self._ended(found, body.labels_from(labels))

    async def succeeded(self, name: str, identity: str, labels: Mapping[str, str]) -> Observation | None:
        """The observation for a container that ended with 0; None if there is more to say than its result has."""
        async with self._slots:
            result, _ = await self._result(identity)
        return None if result is None else finished(name, identity, labels, result, exit_code=0)

    async def _ended(self, found: Mapping[str, Any], labels: Mapping[str, str]) -> Observation | None:
        name, identity, state = found["Name"].lstrip("/"), found["Id"], found["State"]
        result, words = await self._result(identity)
        reason, message = _verdict(found, result)
        if result is not None:
            code = state["ExitCode"]
            return finished(name, identity, labels, result, reason=reason, message=message, exit_code=code)
        if state["Status"] == "dead":
            return None  # the last moment of one that somebody removes by force: it did not end by itself
        if await self._engine.has_file(identity, body.STOP_MARK) and reason != Reason.OOM_KILLED:
            reason, message = Reason.CANCELLED, "killed when its time to end itself was over"
        return Observation(
            name,
            identity,
            Phase.FINISHED,
            labels,
            reason=reason,
            message=message + last_words(words),
            exit_code=state["ExitCode"],
            started_at=moment(state.get("StartedAt")),
            finished_at=moment(state.get("FinishedAt")),
        )

    async def _result(self, identity: str) -> tuple[dict[str, Any] | None, bytes]:
        """The result document, None if there is none, and all that the wrapper wrote at its end."""
        # A job's last output may still be logged after the result; only then all of it is gone through.
        for tail in (str(body.RESULT_TAIL), "all"):
            words = await self._words(identity, tail)
            result = body.result_in(words)
            if result is not None:
                return result, words
        return None, words

    async def _words(self, identity: str, tail: str) -> bytes:
        query = {"stdout": "0", "stderr": "1", "tail": tail}
        words = b""
        try:
            async with self._engine.request("GET", f"/containers/{identity}/logs", query=query) as response:
                async for chunk in demultiplexed(response):
                    words = (words + chunk)[-RESULT_LIMIT - 65536 :]
        except EngineError as error:
            if error.status not in {404, 409}:
                raise TemporaryError(f"the engine cannot read the result of {identity[:12]}: {error}") from error
        return words


def living(name: str, identity: str, labels: Mapping[str, str], *, created: bool) -> Observation:
    """The observation for a container that has not ended, by its labels; they also tell of those that never will start."""
    ours = body.labels_from(labels)
    if body.ENDED_REASON in labels:
        reason, message = labels[body.ENDED_REASON], labels.get(body.ENDED_MESSAGE, "")
        started = moment(labels.get(body.ENDED_STARTED))
        return Observation(name, identity, Phase.FINISHED, ours, reason=reason, message=message, started_at=started)
    return Observation(name, identity, Phase.PENDING if created else Phase.RUNNING, ours)


def _verdict(found: Mapping[str, Any], result: Mapping[str, Any] | None) -> tuple[str, str]:
    """Reason and message where the engine knows better than the result."""
    state, limit = found["State"], found["HostConfig"].get("Memory") or 0
    if state.get("OOMKilled") and state["ExitCode"] != 0:
        return Reason.OOM_KILLED, f"container {found['Name'].lstrip('/')} used more than its {_size(limit)} of memory"
    if result is not None:
        return "", ""
    trouble = f" ({state['Error']})" if state.get("Error") else ""
    return (
        Reason.WRAPPER_FAILED,
        f"the command wrapper left no result; the container ended with {state['ExitCode']}{trouble}: was it killed?",
    )


def _size(count: int) -> str:
    return f"{count / (1 << 20):.0f} MiB" if count else "unlimited share"
