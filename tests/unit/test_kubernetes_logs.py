"""What needs no cluster of reading logs.

What kubelet appends to a log that it cannot follow is not the job's.

The words are as a kubelet of 1.34 sent them with `sysctl fs.inotify.max_user_instances=1`. They are not provoked here: the
limit holds for the whole machine, and other tests run on it.
"""

from __future__ import annotations

import asyncio
import ssl
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any, cast

import pytest

from shared.runtime import kubernetes_api
from shared.runtime.kubernetes_access import Access, Server
from shared.runtime.kubernetes_api import Api
from shared.runtime.kubernetes_logs import BUFFER, Logs, _followed_words, _NoLogError

WORDS = b"failed to create fsnotify watcher: too many open files"


async def followed(*chunks: bytes) -> tuple[bytes, bool]:
    """What comes of these chunks, and whether the log is to be read again."""

    async def answer():
        for chunk in chunks:
            yield chunk

    came = b""
    try:
        async for chunk in _followed_words(answer(), "pod"):
            came += chunk
    except _NoLogError:
        return came, True
    return came, False


@pytest.mark.parametrize("chunks", [(b"up\n" + WORDS,), (b"up\n", WORDS), (b"up\n", WORDS[:45], WORDS[45:])])
async def test_words_of_the_node_are_dropped_and_the_log_is_read_again(chunks):
    assert await followed(*chunks) == (b"up\n", True)


@pytest.mark.parametrize("chunks", [(WORDS + b"\n",), (WORDS, b"\n"), (WORDS, b"\nand on"), (b"up",), ()])
async def test_words_of_the_job_stay(chunks):
    assert await followed(*chunks) == (b"".join(chunks), False)


async def test_a_log_that_nobody_takes_fills_a_small_buffer(monkeypatch):
    """It is printed faster than it is taken; what is not taken waits at the API server."""
    full = asyncio.Event()

    async def print_on(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        try:
            while True:
                writer.write(b"x" * 65536)
                async with asyncio.timeout(None if full.is_set() else 0.5):
                    await writer.drain()
        except TimeoutError:
            full.set()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def nobody():
        return ""

    async def here(_):
        return Server(address, ssl.create_default_context(), nobody)

    server = await asyncio.start_server(print_on, "127.0.0.1", 0)
    address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    monkeypatch.setattr(kubernetes_api, "find_server", here)
    api = Api(Access())
    try:
        pod = cast("Any", SimpleNamespace(namespace="jobs", name="hf-a-1-0"))
        async with (
            asyncio.timeout(20),
            aclosing(Logs(api, cast("Any", None), cast("Any", None))._bytes(pod, follow=True)) as log,
        ):
            await anext(log)
            await full.wait()
            # And what the system hands over at once.
            assert len(await anext(log)) <= 2 * BUFFER + (1 << 18)
    finally:
        await api.close()
        server.close()
