"""Logs of jobs: any part of what is there, or followed as it grows (plain HTTP and websocket).

A slow reader holds up only itself: the next piece is read from the store when it has taken the one before, so a reader costs
one piece of memory, whatever it does. One that takes nothing for `http.STUCK_SECONDS` is let go.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass

from aiohttp import WSCloseCode, WSMsgType, web

from services.console.context import Context
from services.console.followers import Follower
from services.console.models import LogQuery
from services.console.ranges import parse_range
from services.console.store import runs as store
from services.console.store.runs import RunRef
from shared import http
from shared.api import Call, Endpoint
from shared.errors import UserError
from shared.logs import LogStatus, log_status, read_log
from shared.states import FINAL_JOB_STATES, FINAL_RUN_STATES

PIECE = 256 * 1024
"""Bytes read from the store at a time."""
CLOSE_SECONDS = 5.0
"""How long the reader of a websocket has to close its side of it."""
WEBSOCKET_HEARTBEAT = 30.0


@dataclass(frozen=True, slots=True)
class _Log:
    """The log of one attempt. `over`: the job will print no more, and if nothing was kept by now nothing was printed."""

    run: uuid.UUID
    job: str
    attempt: int
    over: bool

    async def status(self, context: Context) -> LogStatus:
        found = await log_status(context.database, self.run, self.job, self.attempt)
        return found or LogStatus(0, self.over, False)

    async def read(self, context: Context, start: int, limit: int) -> bytes:
        return await read_log(
            context.database, context.host.objects, self.run, self.job, self.attempt, start, min(limit, PIECE)
        )


async def _find(call: Call, context: Context, attempt: int | None) -> _Log:
    """Raises UserError 404 for a job or an attempt that is not there."""
    run = await store.brief(context.database, call.tenant, RunRef.parse(call.path("run")), call.path("run"))
    name = call.path("job")
    row = await store.job(context.database, run["id"], name)
    if row is None:
        described = await store.job_document(context.database, run["id"], name)
        if described is None or described["job"] is None:
            raise UserError(f"run {run['number']} has no job {name!r}", code="job-not-found", status=404)
        return _Log(run["id"], name, attempt or 1, run["state"] in FINAL_RUN_STATES)
    newest = row["attempt"]
    if attempt is not None and attempt > max(newest, 1):
        raise UserError(
            f"the job {name!r} has no attempt {attempt}: it has had {newest}", code="attempt-not-found", status=404,
        )  # fmt: skip
    wanted = attempt or max(newest, 1)
    origin = row["carried_from"] or run["id"]  # what was carried over has its log where it ran
    over = wanted < newest or row["state"] in FINAL_JOB_STATES
    # An attempt that is over and never had a container has no log and will have none; any other's is on its way.
    over = over and not await store.had_container(context.database, origin, name, wanted)
    return _Log(origin, name, wanted, over)


async def get_log(call: Call, context: Context) -> web.StreamResponse:
    """The log, or a part of it, as plain text; with `follow` until it is complete."""
    query = call.query(LogQuery)
    if not query.follow:
        return await _answer(call, context, query, None)
    with context.followers.following(call) as follower:
        return await _answer(call, context, query, follower)


async def _answer(call: Call, context: Context, query: LogQuery, follower: Follower | None) -> web.StreamResponse:
    log = await _find(call, context, query.attempt)
    status = await log.status(context)
    start, end, partial = _part(call.request, query, status)
    response = web.StreamResponse(status=206 if partial else 200, headers=_headers(log, status))
    if partial:
        response.headers["Content-Range"] = f"bytes {start}-{end - 1}/{status.size if status.complete else '*'}"
    if query.follow:
        response.enable_chunked_encoding()
    else:
        response.content_length = end - start
    missing = end - start
    pieces = _pieces(call, context, log, start, end if follower is None else follower)
    # The first piece before the answer begins, so that a log that cannot be read is told with a status; whoever follows one
    # gets the headers at once.
    first = b"" if query.follow else await anext(pieces, b"")
    await response.prepare(call.request)
    async with aclosing(pieces):
        async for piece in _after(first, pieces):
            await http.write(call.request, response, piece)
            missing -= len(piece)
    if missing > 0 and not query.follow and call.request.transport is not None:
        # Fewer bytes came than were announced: the reader must see a broken answer, and not wait for the rest.
        call.request.transport.close()
    await response.write_eof()
    return response


async def _after(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    if first:
        yield first
    async for piece in rest:
        yield piece


async def _pieces(call: Call, context: Context, log: _Log, start: int, until: int | Follower) -> AsyncGenerator[bytes]:
    """The bytes from `start` to `until`, or (a follower) as they come until the log is complete."""
    follower, end = (until, None) if isinstance(until, Follower) else (None, until)
    async with context.changes.watching(log.run, "log", "job.ended", "run.finished") as watch:
        while end is None or start < end:
            if follower is not None:
                await follower.check()
            status = await log.status(context)
            piece = b""
            if start < (status.size if end is None else end):
                piece = await log.read(context, start, PIECE if end is None else end - start)
                start += len(piece)
                yield piece
            if piece:
                continue
            if end is not None or status.complete or context.changes.closed or _gone(call.request):
                return
            await watch.wait()
            if not log.over:
                log = await _find(call, context, log.attempt)


def _part(request: web.Request, query: LogQuery, status: LogStatus) -> tuple[int, int, bool]:
    """(first byte, byte after the last, whether it is an answer to a Range header)."""
    header = request.headers.get("Range")
    if header is None or query.follow:
        start = max(0, status.size - query.tail) if query.tail is not None else query.offset
        return min(start, status.size) if not query.follow else start, status.size, False
    wanted = parse_range(header, status.size)
    return (0, status.size, False) if wanted is None else (*wanted, True)


def _headers(log: _Log, status: LogStatus) -> dict[str, str]:
    return {
        "Content-Type": "text/plain; charset=utf-8",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-store",
        "Accept-Ranges": "bytes",
        "Hubflow-Attempt": str(log.attempt),
        "Hubflow-Log-Size": str(status.size),
        "Hubflow-Log-Complete": str(status.complete).lower(),
        "Hubflow-Log-Truncated": str(status.truncated).lower(),
    }


def _gone(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()


async def stream_log(call: Call, context: Context) -> web.WebSocketResponse:
    """The log by websocket: a text frame {"attempt", "offset"}, binary frames with its bytes, and at the end a text frame
    {"complete": true, "offset"}. Without that one the log could not be read further (close code 1011), or the token has ended
    (1008). To resume, ask with `offset` = the first one + the bytes received."""
    query = call.query(LogQuery)
    with context.followers.following(call) as follower:
        return await _stream(call, context, query, follower)


async def _stream(call: Call, context: Context, query: LogQuery, follower: Follower) -> web.WebSocketResponse:
    log = await _find(call, context, query.attempt)
    status = await log.status(context)
    start = max(0, status.size - query.tail) if query.tail is not None else query.offset
    socket = web.WebSocketResponse(heartbeat=WEBSOCKET_HEARTBEAT)
    await socket.prepare(call.request)
    sender = asyncio.create_task(_send(call, context, log, socket, start, follower), name="log websocket")
    listener = asyncio.create_task(_hear(socket), name="log websocket's reader")
    try:
        await asyncio.wait((sender, listener), return_when=asyncio.FIRST_COMPLETED)
    finally:
        sender.cancel()
        listener.cancel()
        ended, _ = await asyncio.gather(sender, listener, return_exceptions=True)
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            await socket.close(code=_close_code(ended))
    except TimeoutError:
        if call.request.transport is not None:
            call.request.transport.abort()
    if isinstance(ended, Exception) and not isinstance(
        ended, ConnectionError | TimeoutError
    ):  # else the reader's doing
        raise ended
    return socket


def _close_code(ended: BaseException | None) -> WSCloseCode:
    if isinstance(ended, UserError):
        return WSCloseCode.POLICY_VIOLATION
    return WSCloseCode.INTERNAL_ERROR if isinstance(ended, Exception) else WSCloseCode.OK


async def _hear(socket: web.WebSocketResponse) -> None:
    """Nothing is expected from the reader; hearing it is how its pongs and its end are noticed."""
    async for message in socket:
        if message.type in {WSMsgType.CLOSE, WSMsgType.ERROR}:
            break


async def _send(
    call: Call, context: Context, log: _Log, socket: web.WebSocketResponse, start: int, follower: Follower
) -> None:
    await socket.send_str(json.dumps({"attempt": log.attempt, "offset": start}))
    async with aclosing(_pieces(call, context, log, start, follower)) as pieces:
        async for piece in pieces:
            async with asyncio.timeout(http.STUCK_SECONDS):
                await socket.send_bytes(piece)
            start += len(piece)
    status = await log.status(context)
    await socket.send_str(json.dumps({"complete": status.complete, "offset": start, "truncated": status.truncated}))


LOG = "/api/v1/runs/{run}/jobs/{job}/log"
ENDPOINTS = (
    Endpoint("GET", LOG, get_log, "A job's log", query=LogQuery, answer=str, media="text/plain"),
    Endpoint(
        "GET", f"{LOG}/stream", stream_log, "Follow a job's log by websocket", query=LogQuery, status=101, media=""
    ),
)
