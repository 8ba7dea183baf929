"""What needs no cluster of reading logs.

What kubelet appends to a log that it cannot follow is not the job's.

The words are as a kubelet of 1.34 sent them with `sysctl fs.inotify.max_user_instances=1`. They are not provoked here: the
limit holds for the whole machine, and other tests run on it.
"""

from __future__ import annotations

import asyncio
import ssl
from contextlib import aclosing, asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import web

from shared.errors import TemporaryError
from shared.runtime import kubernetes_api, kubernetes_logs
from shared.runtime.kubernetes_access import Access, Server
from shared.runtime.kubernetes_api import Api
from shared.runtime.kubernetes_logs import BUFFER, Logs, _followed_words, _NoLogError
from shared.runtime.kubernetes_read import pod_of

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


def api_at(port, monkeypatch):
    async def nobody():
        return ""

    async def here(_):
        return Server(f"http://127.0.0.1:{port}", ssl.create_default_context(), nobody)

    monkeypatch.setattr(kubernetes_api, "find_server", here)
    return Api(Access())


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

    server = await asyncio.start_server(print_on, "127.0.0.1", 0)
    api = api_at(server.sockets[0].getsockname()[1], monkeypatch)
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


class Node:
    """Gives of a log what a kubelet gives: its newest file, and to who follows also those that come after it."""

    def __init__(self):
        self.files = [b""]
        self.printed = b""
        self._news = asyncio.Event()
        self._readers = []

    def print(self, data, *, rotated=False):
        self.printed += data
        self.files = [*self.files, data] if rotated else [*self.files[:-1], self.files[-1] + data]
        self._news.set()
        self._news = asyncio.Event()

    def cut(self):
        for request in self._readers:
            if request.transport is not None:
                request.transport.abort()

    async def log(self, request):
        response = web.StreamResponse()
        await response.prepare(request)
        self._readers.append(request)
        number, at = len(self.files) - 1, 0
        while True:
            chunk, news = self.files[number][at:], self._news
            at += len(chunk)
            await response.write(chunk)
            if number + 1 < len(self.files):
                number, at = number + 1, 0
            elif request.query["follow"] == "false":
                return response
            else:
                await news.wait()

    @asynccontextmanager
    async def logs(self, monkeypatch):
        """Of pods that run and of which there are no news, and that all print the same."""
        monkeypatch.setattr(kubernetes_logs, "FOLLOWED_AFTER", 0.0)
        monkeypatch.setattr(kubernetes_logs, "ASKED_AGAIN_AFTER", 0.05)

        def running(name):
            metadata = {"name": name, "namespace": "jobs", "uid": "u", "resourceVersion": "7"}
            state = {"phase": "Running", "containerStatuses": [{"name": "job", "state": {"running": {}}}]}
            return pod_of({"metadata": metadata, "spec": {}, "status": state})

        async def changed(_, version, timeout):
            if version:
                await asyncio.sleep(timeout)

        app = web.Application()
        app.router.add_get("/api/v1/namespaces/jobs/pods/{name}/log", self.log)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        api = api_at(runner.addresses[0][1], monkeypatch)
        try:
            yield Logs(api, cast("Any", SimpleNamespace(live=True, get=running, changed=changed)), cast("Any", None))
        finally:
            await api.close()
            await runner.cleanup()


async def read_to(size, chunks, log):
    async with asyncio.timeout(20):
        while len(log) < size:
            log += await anext(chunks)


@pytest.mark.parametrize("meanwhile", [False, True])
@pytest.mark.parametrize("read", [10, 1000])
async def test_t55_a_log_that_was_rotated_goes_on_after_a_break(read, meanwhile, monkeypatch):
    """As much of the newest file was skipped as had been read of all of them: hours of a job's output."""
    node, log = Node(), bytearray()
    async with node.logs(monkeypatch) as logs:
        async with aclosing(logs.read("hf-a-1-0", 0, follow=True)) as chunks:
            node.print(b"".join(b"first %d\n" % number for number in range(100_000)))
            await read_to(len(node.printed), chunks, log)
            node.print(b"".join(b"second %d\n" % number for number in range(read)), rotated=True)
            await read_to(len(node.printed), chunks, log)
            node.cut()
            with pytest.raises(TemporaryError):
                await anext(chunks)
        node.print(b"third\n", rotated=meanwhile)
        async with aclosing(logs.read("hf-a-1-0", len(log), follow=True)) as chunks:
            await read_to(len(node.printed), chunks, log)
            node.print(b"fourth\n")
            await read_to(len(node.printed), chunks, log)
    assert bytes(log) == node.printed


async def test_the_places_of_so_many_logs_are_remembered_and_not_of_more(monkeypatch):
    monkeypatch.setattr(kubernetes_logs, "BROKEN_OFF", 2)
    node = Node()
    node.print(b"up\n")
    async with node.logs(monkeypatch) as logs:
        for name in ("a", "b", "c"):
            async with aclosing(logs.read(name, 0, follow=True)) as chunks:
                await anext(chunks)
        assert [*logs._broken_off] == ["b", "c"]
        async for _ in logs.read("b", 0, follow=False):
            pass
        assert [*logs._broken_off] == ["c"]
