"""What can only be seen from inside the cluster. Runs in the pods that `probe` starts; facts only, no judgement.

The facts go to the termination message, which has 4096 bytes.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import Awaitable, Callable
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import click

from cli.doctor.meaning import LOSING
from shared.config import load
from shared.errors import HubflowError
from shared.settings import HostSettings, ObjectsSettings

MESSAGE = Path("/dev/termination-log")
PATIENCE = 15.0
_LONGEST = 300
_MANAGEMENT = 15672


async def look(place: str) -> dict[str, Any]:
    """Look around with a service's settings ("services"), or as a job ("job")."""
    return await (_as_service() if place == "services" else _as_job())


def leave(facts: dict[str, Any]) -> None:
    """Leave what was seen where `probe` finds it, and in the log for people."""
    text = json.dumps(facts)
    click.echo(text)
    if MESSAGE.exists():
        MESSAGE.write_text(text)


async def _as_service() -> dict[str, Any]:
    host, objects = load(os.environ, HostSettings, ObjectsSettings)
    postgres, rabbitmq, store = await asyncio.gather(
        _facts(lambda: _postgres(host)),
        _facts(lambda: _rabbitmq(host.amqp_url)),
        _facts(lambda: _store(objects)),
    )
    return {"postgres": postgres, "rabbitmq": rabbitmq, "objects": store}


async def _as_job() -> dict[str, Any]:
    objects: ObjectsSettings = load(os.environ, ObjectsSettings)[0]
    hosts = ["kubernetes.default.svc", *filter(None, [urlsplit(objects.endpoint).hostname])]
    resolved = await asyncio.gather(*(_resolve(host) for host in hosts))
    return {"names": dict(zip(hosts, resolved, strict=True)), "objects": await _facts(lambda: _door(objects.endpoint))}


async def _facts(ask: Callable[[], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
    """What was found, or the error in a form that people can use."""
    try:
        async with asyncio.timeout(PATIENCE):
            return await ask()
    except TimeoutError:
        return {"error": f"no answer within {PATIENCE:g} seconds"}
    except HubflowError as error:
        return {"error": str(error)[:_LONGEST]}


async def _postgres(host: HostSettings) -> dict[str, Any]:
    from shared.db.database import open_database
    from shared.db.migrate import pending

    async with open_database(host.database_url, max_connections=1) as database:
        began = time.time()
        [row] = await database.fetch(
            "SELECT current_setting('server_version_num')::int AS version, "
            "current_setting('max_connections')::int AS max_connections, extract(epoch FROM clock_timestamp())::float8 AS time"
        )
        ended = time.time()
        clocks = {"a service": (began + ended) / 2, "postgresql": row["time"]}
        return {
            **{key: row[key] for key in ("version", "max_connections")},
            "connections": host.database_connections,
            "clocks": clocks,
            "pending": await pending(database),
        }


async def _rabbitmq(url: str) -> dict[str, Any]:
    import aiormq

    from shared.errors import TemporaryError

    try:
        connection = await aiormq.connect(url)
    except (aiormq.exceptions.AMQPError, OSError) as error:
        raise TemporaryError(f"{urlsplit(url).hostname}: {str(error) or type(error).__name__}") from error
    try:
        version = connection.server_properties.get("version", "0")
    finally:
        await connection.close()
    return {
        "version": version.decode() if isinstance(version, bytes) else str(version),
        "policies": await _policies(url),
    }


async def _policies(url: str) -> list[dict[str, Any]] | None:
    """Those that make RabbitMQ throw messages away; None where the management plugin does not answer."""
    import aiohttp

    place = urlsplit(url)
    vhost = unquote(place.path[1:]) or "/"
    address = f"http://{place.hostname}:{_MANAGEMENT}/api/policies/{vhost.replace('/', '%2F')}"
    who = aiohttp.BasicAuth(unquote(place.username or "guest"), unquote(place.password or "guest"))
    try:
        timeout = aiohttp.ClientTimeout(total=5)
        async with aiohttp.ClientSession(auth=who, timeout=timeout) as session:
            from yarl import URL

            async with session.get(URL(address, encoded=True)) as response:
                if response.status != 200:
                    return None
                found = [
                    {key: each[key] for key in ("name", "pattern", "definition")} for each in await response.json()
                ]
                # There may be many, and there is little room.
                return [each for each in found if set(LOSING) & set(each["definition"])][:5]
    except (aiohttp.ClientError, OSError, TimeoutError):
        return None


async def _store(settings: ObjectsSettings) -> dict[str, Any]:
    """Write, read and delete one small object."""
    from shared.objects import open_object_store

    key = f"doctor/{os.urandom(8).hex()}"
    async with open_object_store(settings) as store:
        await store.put(key, b"hubflow doctor")
        await store.get(key)
        await store.delete([key])
    return {}


async def _door(endpoint: str) -> dict[str, Any]:
    """Does the S3 answer whoever has no keys? That it refuses is an answer."""
    import aiohttp

    from shared.errors import TemporaryError

    try:
        timeout = aiohttp.ClientTimeout(total=PATIENCE)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(endpoint or "https://s3.amazonaws.com") as response,
        ):
            if response.status >= 500:
                raise TemporaryError(f"it answers {response.status}")
            told = response.headers.get("Date", "")
            return {"clocks": {"a job": time.time(), "the S3": parsedate_to_datetime(told).timestamp()}} if told else {}
    except (aiohttp.ClientError, OSError) as error:
        raise TemporaryError(str(error) or type(error).__name__) from error


async def _resolve(host: str) -> str:
    try:
        async with asyncio.timeout(PATIENCE):
            await asyncio.get_running_loop().getaddrinfo(host, None)
    except (socket.gaierror, TimeoutError) as error:
        return str(error) or "no answer"
    return ""
