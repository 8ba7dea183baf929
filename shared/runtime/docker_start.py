"""Starting containers on a Docker-compatible engine, so that one name is one container whatever crashes when.

    create (the name is the lock) -> copy the job document in, unless it came with the container -> start

Only who has created a container, and so knows its id, copies and starts. Who finds one that stays `created` takes it
to be left behind by a crash: deletes it by id, which the engine refuses for one that has started, and begins anew; the
first one, should it live after all, then finds its id gone and looks again. While an image is pulled or services become
ready, and where something never started, a container without content holds the name and says why in its labels.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shared.errors import ConfigurationError, PermanentError, TemporaryError
from shared.log import get_logger
from shared.runtime import docker_body as body
from shared.runtime.allowed import Allowed
from shared.runtime.docker_services import Services
from shared.runtime.engine import Engine, EngineError, json_lines
from shared.runtime.protocol import ContainerSpec
from shared.runtime.results import moment
from shared.runtime.wrapper import binary_for
from shared.states import Reason

PULL_TIMEOUT = 1800.0
START_TIMEOUT = 120.0
HELPER_AGE = 600.0
GIVE_WAY = 0.2
"""Seconds that a name which has become free is left to whoever freed it."""
_HOPELESS = (
    "not found", "manifest unknown", "denied", "unauthorized", "authentication required", "no basic auth",
    "no matching manifest", "no such host", "does not exist", "invalid reference", "must be lowercase",
)  # fmt: skip
"""What engines and registries say when trying again will not help."""
_log = get_logger("runtime")


@dataclass(frozen=True, slots=True)
class Setup:
    """What starts need to know about this engine."""

    volume: str
    """Where the wrapper lies, and the key of sealed documents; named after both."""
    binary: Path
    log: Mapping[str, Any]


class Starter:
    """Starts containers on one engine. `takeover_after`: seconds that a container may stay unstarted in other hands."""

    def __init__(
        self,
        engine: Engine,
        wrapper: Path,
        installation: str,
        default_image: str,
        takeover_after: float,
        key: bytes | None,
        allowed: Allowed,
        pull: str,
    ) -> None:
        self._engine = engine
        self._allowed = allowed
        self._wrapper = wrapper
        self._installation = installation
        self._default_image = default_image
        self._takeover_after = takeover_after
        self._key = key
        self._pull_always = pull == "always"
        self._setup: Setup | None = None
        self._installed = False
        self._installing = asyncio.Lock()
        self._pulls: dict[tuple[str, str], asyncio.Task[None]] = {}
        self.services = Services(engine, installation, self.create_named, self._pull_once, always=self._pull_always)

    async def start(self, spec: ContainerSpec) -> None:
        """See the protocol. Failures of the pull and of the start itself are observed, not raised."""
        body.check(spec, self._allowed)
        image = body.with_tag(spec.image or self._default_image)
        if spec.again and (started := await self._gone_since(spec.name)):
            message = (
                "somebody removed its container, and the executor that had started it could not note that any more"
            )
            labels = body.labels_to(spec.labels, self._installation) | _ended(Reason.CONTAINER_GONE, message)
            await self.hold(spec.name, {**labels, body.ENDED_STARTED: started})
            return
        for _ in range(20):
            identity = await self._create(spec, image)
            if identity is None:
                if await self._settled(spec.name):
                    return
            elif await self._launch(spec, image, identity):
                return
        raise TemporaryError(f"container {spec.name} keeps being started by somebody else, who never finishes")

    async def _gone_since(self, name: str) -> str:
        """When a container of this name started that is not there any more; "" for none, as far as the engine remembers."""
        try:
            now = moment((await self._engine.call("GET", "/info")).get("SystemTime")) or datetime.now(UTC)
            everything = 1  # nanosecond of 1970
            query = {**body.event_query(["start"], container=name, since=everything), "until": f"{now.timestamp():.6f}"}
            async with self._engine.request("GET", "/events", query=query) as response:
                started = [event async for event in json_lines(response)]
        except EngineError as error:
            raise TemporaryError(f"the engine cannot tell what has happened: {error}") from error
        times = [event["timeNano"] for event in started if event["Actor"]["Attributes"].get("name") == name]
        if not times or await self.find(name) is not None:
            return ""
        return datetime.fromtimestamp(times[-1] / 1e9, UTC).isoformat()

    # creating

    async def _create(self, spec: ContainerSpec, image: str) -> str | None:
        """Id of the new container; None if the name is taken."""
        setup = await self.ready()
        await self._install()
        if spec.services and not await self._with_services(spec, setup):
            return None
        # The operator's own image (no name) is everybody's; of others the registry is asked who may have them.
        if not (self._pull_always and spec.image) and spec.options.get("pull") != "always":
            try:
                return await self._create_now(spec, image, setup)
            except EngineError as error:
                if error.status != 404:
                    raise _refused(spec, error) from error
        return await self._create_after_pull(spec, image, setup)

    async def _create_now(self, spec: ContainerSpec, image: str, setup: Setup) -> str | None:
        """Of an image that is there. Raises EngineError (404 for one that is not)."""
        key = self._key_for(spec)
        sealed = body.seal(spec, await self._command(spec, image), key) if key else ""
        content = body.create(spec, image, self._installation, setup.volume, setup.log, sealed)
        return await self.create_named(spec.name, content)

    def _key_for(self, spec: ContainerSpec) -> bytes | None:
        """What its job document is sealed with, to come with the container; None if it is to be copied in."""
        return self._key if body.can_be_sealed(spec) else None

    async def create_named(self, name: str, content: Mapping[str, Any]) -> str | None:
        """Create a container; its id, or None if the name is taken. Raises EngineError for all else."""
        try:
            created = await self._engine.call("POST", "/containers/create", query={"name": name}, body=content)
        except EngineError as error:
            if error.status == 409:
                return None
            raise
        return str(created["Id"])

    async def _with_services(self, spec: ContainerSpec, setup: Setup) -> bool:
        """Bring the services up while a container without content holds the name. False if it is taken, or they failed."""
        labels = {**body.labels_to(spec.labels, self._installation), body.SERVICES: "1"}
        holder = await self.hold(spec.name, labels)
        if holder is None:
            return False
        try:
            await self._make_empty_image()
            await self.services.up(spec, setup.volume, setup.log)
        except PermanentError as error:
            await self.bury(spec.name, holder, labels, error.reason, str(error))
            await self.services.remove(spec.name)
            return False
        except TemporaryError:
            if await self.find(holder) is not None:
                raise
            return False  # somebody has stopped it or taken it over, and the services with it
        return await self.delete_unstarted(holder)

    async def _create_after_pull(self, spec: ContainerSpec, image: str, setup: Setup) -> str | None:
        labels = body.labels_to(spec.labels, self._installation)
        holder = await self.hold(spec.name, {**labels, body.PULLING: image})
        if holder is None:
            return None
        try:
            await self._pull_once(image, spec.registry_auth)
        except PermanentError as error:
            await self.bury(spec.name, holder, labels, error.reason, str(error))
            return None
        if not await self.delete_unstarted(holder):
            return None
        try:
            return await self._create_now(spec, image, setup)
        except EngineError as error:
            raise _refused(spec, error) from error

    async def hold(self, name: str, labels: Mapping[str, str]) -> str | None:
        """Take a name with a container without content; its id, or None if the name is taken."""
        for attempt in (1, 2):
            try:
                return await self.create_named(name, body.stand_in(labels))
            except EngineError as error:
                if error.status != 404 or attempt == 2:
                    raise TemporaryError(f"the engine cannot create {name}: {error}") from error
                await self._make_empty_image(again=True)
        return None

    async def _make_empty_image(self, *, again: bool = False) -> None:
        try:
            if not again:
                await self._engine.call("GET", f"/images/{body.EMPTY_IMAGE}/json")
                return
        except EngineError as error:
            if error.status != 404:
                raise
        repository, _, tag = body.EMPTY_IMAGE.partition(":")
        query = {"fromSrc": "-", "repo": repository, "tag": tag}
        await self._progress("/images/create", query=query, data=bytes(1024))

    async def bury(self, name: str, identity: str, labels: Mapping[str, str], reason: str, message: str) -> bool:
        """Replace a container that has not started by one that says why it never will. False if it is not there."""
        if not await self.delete_unstarted(identity):
            return False
        return await self.hold(name, {**labels, **_ended(reason, message)}) is not None

    async def delete_unstarted(self, identity: str) -> bool:
        """Delete a container unless it has started or is gone; True if this call has deleted it."""
        try:
            await self._engine.call("DELETE", f"/containers/{identity}", query={"v": "1"})
        except EngineError as error:
            if error.status in {404, 409}:
                return False
            raise TemporaryError(f"the engine cannot delete {identity[:12]}: {error}") from error
        return True

    # starting

    async def _launch(self, spec: ContainerSpec, image: str, identity: str) -> bool:
        """Start, after the document is copied in if it did not come along. False if somebody else has taken over meanwhile."""
        if spec.shared_directory and spec.options.get("read_only_root"):
            await self._open_shared(spec)
        archive = None if self._key_for(spec) else body.job_archive(spec, await self._command(spec, image))
        for attempt in (1, 2):
            try:
                if archive:
                    await self.copy_in(identity, *archive)
                await self._engine.call("POST", f"/containers/{identity}/start", timeout=START_TIMEOUT)
            except EngineError as error:
                if (error.status == 404 and "No such container" in str(error)) or error.status == 409:
                    return False
                if attempt == 1 and "hubflow-wrapper" in str(error):
                    # Somebody has pruned the volume since we filled it.
                    self._installed = False
                    await self._install()
                    continue
                await self._never(spec, identity, error)
            return True
        return True

    async def _open_shared(self, spec: ContainerSpec) -> None:
        """Let every user write to the shared directory; from a container whose own root is read-only that cannot be."""
        async with self._helper(body.shared_opener(spec, self._installation)) as helper:
            await self.copy_in(helper, "/", body.shared_archive())

    @asynccontextmanager
    async def _helper(self, content: Mapping[str, Any]) -> AsyncIterator[str]:
        """A container that helps and is gone afterwards."""
        await self._make_empty_image()
        identity = (await self._engine.call("POST", "/containers/create", body=content))["Id"]
        try:
            yield identity
        finally:
            await self._engine.call("DELETE", f"/containers/{identity}", query={"force": "1"})

    async def copy_in(self, identity: str, target: str, archive: bytes) -> None:
        """Unpack an archive in a container."""
        await self._engine.call("PUT", f"/containers/{identity}/archive", query={"path": target}, data=archive)

    async def _never(self, spec: ContainerSpec, identity: str, error: EngineError) -> None:
        labels = body.labels_to(spec.labels, self._installation)
        await self.bury(spec.name, identity, labels, Reason.START_FAILED, f"the engine could not start it: {error}")

    async def _command(self, spec: ContainerSpec, image: str) -> list[str]:
        if command := spec.document.get("command"):
            return list(command)
        config = (await self._engine.call("GET", f"/images/{image}/json")).get("Config") or {}
        return [*(config.get("Entrypoint") or []), *(config.get("Cmd") or [])]

    async def _settled(self, name: str) -> bool:
        """Is the container of this name past starting? Waits for who is at it; removes what they have left behind."""
        found = await self.find(name)
        if found is None:
            return False
        if body.vanishing(found):
            await asyncio.sleep(GIVE_WAY)
            return False
        if not unstarted(found):
            return True
        if await self.changed(found["Id"], self._takeover_after):
            # Whoever gives a name up takes it again at once, for the container itself: two would snatch it from each other.
            await asyncio.sleep(GIVE_WAY)
        elif await self.delete_unstarted(found["Id"]):
            _log.warning("container taken over", container=name)
        return False

    async def find(self, name: str) -> dict[str, Any] | None:
        """The engine's whole description of a container of this installation."""
        try:
            found: dict[str, Any] = await self._engine.call("GET", f"/containers/{name}/json")
        except EngineError as error:
            if error.status == 404:
                return None
            raise TemporaryError(f"the engine cannot describe {name}: {error}") from error
        return found if (found["Config"].get("Labels") or {}).get(body.INSTALLATION) == self._installation else None

    async def changed(self, identity: str, timeout: float) -> bool:
        """Wait until a container that has not started does, or goes; False after `timeout` seconds."""
        query = body.event_query(["start", "destroy"], container=identity)
        try:
            async with asyncio.timeout(timeout):
                async with self._engine.request("GET", "/events", query=query, timeout=None) as response:
                    now = await self.find(identity)
                    if now is None or not unstarted(now):
                        return True
                    async for _ in json_lines(response):
                        return True
        except TimeoutError:
            now = await self.find(identity)
            return now is None or not unstarted(now)
        return True

    # images

    async def _pull_once(self, image: str, auth: Mapping[str, str] | None) -> None:
        """Pull, together with whoever pulls the same image with the same account in this process."""
        key = (image, json.dumps(dict(auth or {}), sort_keys=True))
        pull = self._pulls.get(key)
        if pull is None:
            pull = self._pulls[key] = asyncio.create_task(self._pull(image, auth))
            pull.add_done_callback(lambda _: self._pulls.pop(key, None))
        await asyncio.shield(pull)

    async def _pull(self, image: str, auth: Mapping[str, str] | None) -> None:
        """Raises PermanentError(ImagePull) or TemporaryError."""
        query = {"fromImage": image}
        headers = body.registry_header(image, auth)
        try:
            await self._progress("/images/create", query=query, headers=headers, timeout=PULL_TIMEOUT)
        except EngineError as error:
            text = f"image {image} cannot be pulled: {error}"
            if any(word in str(error).lower() for word in _HOPELESS):
                raise PermanentError(text, reason=Reason.IMAGE_PULL) from error
            raise TemporaryError(text) from error

    async def _progress(self, path: str, **options: Any) -> None:
        """POST, and read the progress that the engine tells until its end. Raises EngineError for an error on the way."""
        async with self._engine.request("POST", path, **options) as response:
            async for line in json_lines(response):
                if "error" in line:
                    raise EngineError(500, str(line["error"]))

    # what is done once

    async def ready(self) -> Setup:
        """What is known about engine and wrapper; asked and computed once."""
        if self._setup is None:
            info = await self._engine.call("GET", "/info")
            binary = binary_for(self._wrapper, str(info.get("Architecture", "")))
            content = await asyncio.to_thread(_read, binary)
            volume = f"hubflow-wrapper-{hashlib.sha256(content + (self._key or b'')).hexdigest()[:16]}"
            self._setup = Setup(volume, binary, body.log_config(info))
        return self._setup

    async def _install(self) -> None:
        """Fill the wrapper's volume, unless it is. Twice at once does no harm: the wrapper installs itself atomically."""
        async with self._installing:
            if self._installed:
                return
            try:
                await self._fill((await self.ready()).volume)
            except EngineError as error:
                raise TemporaryError(f"the engine cannot install the command wrapper: {error}") from error
            self._installed = True

    async def _fill(self, volume: str) -> None:
        async with self._helper(body.installer(volume)) as helper:
            if not await self._engine.has_file(helper, body.LAST_INSTALLED):
                if self._key is not None:
                    await self.copy_in(helper, body.BIN, body.key_archive(self._key))
                await self._run_installer(helper)
        await self._remove_old_helpers()

    async def _run_installer(self, identity: str) -> None:
        content = await asyncio.to_thread(_read, (await self.ready()).binary)
        await self.copy_in(identity, "/", body.wrapper_archive(content))
        await self._engine.call("POST", f"/containers/{identity}/start", timeout=START_TIMEOUT)
        ended = await self._engine.call("POST", f"/containers/{identity}/wait")
        if ended["StatusCode"] != 0:
            raise TemporaryError(f"the command wrapper cannot install itself: status {ended['StatusCode']}")

    async def _remove_old_helpers(self) -> None:
        """Those that somebody was killed over; younger ones may be at work."""
        filters = json.dumps({"label": list(body.HELPERS)})
        for found in await self._engine.call("GET", "/containers/json", query={"all": "1", "filters": filters}):
            if time.time() - found["Created"] > HELPER_AGE:
                await self._engine.call("DELETE", f"/containers/{found['Id']}", query={"force": "1"})


def unstarted(found: Mapping[str, Any]) -> bool:
    """Is this container (as the engine describes it) still to be started by somebody?"""
    labels = found["Config"].get("Labels") or {}
    return found["State"]["Status"] == "created" and body.ENDED_REASON not in labels


def _ended(reason: str, message: str) -> dict[str, str]:
    """Labels of a container that will never start."""
    return {body.ENDED_REASON: reason, body.ENDED_MESSAGE: message[:2000]}


def _refused(spec: ContainerSpec, error: EngineError) -> Exception:
    text = f"the engine cannot create {spec.name}: {error}"
    if error.status == 400:
        reason = Reason.IMAGE_PULL if "reference" in str(error) else Reason.UNSUPPORTED
        return PermanentError(f"{text} (image {spec.image})", reason=reason)
    return TemporaryError(text)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"the command wrapper {path} cannot be read: {error}") from error
