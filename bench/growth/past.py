"""A long past: runs that are over, copied in bulk by SQL from a few that really ran, with rows in every table that has a run's.

All belong to one tenant, which is the worst case. Ids and times lie in the past, a run every two seconds, as if they had come
one after the other.
"""

from __future__ import annotations

import asyncio

import asyncpg

from bench.growth.place import TENANT, Place

BATCH = 50_000
BUILD = """
name: build
stages:
- name: build
  jobs:
  - {name: compile, script: 'echo "[JOB_OUT] VERSION = 1.2.3"; seq 50'}
  - {name: lint, script: 'seq 20'}
  - {name: test, needs: [compile], inputs: {VERSION: "${{ jobs.compile.outputs.VERSION }}"}, script: 'seq 200'}
- name: publish
  jobs:
  - {name: package, script: 'seq 20'}
"""
BROKEN = """
name: broken
stages:
- name: s
  jobs:
  - {name: j0, script: 'echo no; exit 3'}
"""
SHARE = {"l1": 80, "build": 15, "broken": 5}
"""Of a hundred runs."""

_EXPRESSIONS = {
    "run": "c.new",
    "container": "t.container || '-' || c.n",
    "removed_at": "t.finished_at - c.age",  # the sample's container is kept for a while
}
"""What a copy has instead of the value. An id is new, a time as much earlier as the run is."""
_TABLES = ("run_counters", "stages", "jobs", "attempts", "attempt_outcomes", "logs", "artifacts", "events")
_ID = "uuidv7(-c.age)"

_FEW = f"""
-- One run in four by a hook, one in four by a client that repeats itself, one in fifty cancelled or retried by somebody.
INSERT INTO hook_deliveries (tenant, workflow, source, delivery, fingerprint, run, outcome, received_at)
SELECT '{TENANT}', c.workflow, 'github', c.new::text, md5(c.n::text), c.new, 'started', now() - c.age
FROM copies c WHERE c.n % 4 = 0;

INSERT INTO idempotency_keys (tenant, key, request_hash, status, response, created_at)
SELECT '{TENANT}', c.new::text, sha256(c.new::text::bytea), 201, jsonb_build_object('id', c.new, 'number', c.n), now() - c.age
FROM copies c WHERE c.n % 4 = 1;

INSERT INTO audit (id, at, tenant, actor, action, subject)
SELECT {_ID}, now() - c.age, '{TENANT}', 'token:operator', CASE c.n % 100 WHEN 2 THEN 'run.cancel' ELSE 'run.retry' END, c.new
FROM copies c WHERE c.n % 50 = 2;

-- What each consumer has handled: as many rows as the sample has.
INSERT INTO inbox (consumer, event, handled_at)
SELECT i.consumer, {_ID}, i.handled_at - c.age FROM inbox i JOIN events e ON e.id = i.event JOIN copies c ON c.old = e.run;

-- A subscription hears of the end of a run.
INSERT INTO deliveries (id, subscription, tenant, event, payload, state, tries, last_status, created_at, finished_at)
SELECT {_ID}, s.id, '{TENANT}', {_ID}, convert_to(jsonb_build_object('type', 'run.finished', 'timestamp', now() - c.age,
    'data', jsonb_build_object('tenant', s.tenant, 'run', c.new, 'number', c.n, 'workflow', c.workflow))::text, 'UTF8'),
    'delivered', 1, 200, now() - c.age, now() - c.age
FROM copies c JOIN subscriptions s ON s.tenant = '{TENANT}';
"""


async def fill(place: Place, runs: int) -> None:
    await _samples(place)
    connection = await asyncpg.connect(place.dsn)
    try:
        # The rows are right by construction, and nobody waits for each: no foreign keys looked up, no wait for the disk.
        await connection.execute("SET session_replication_role = replica; SET synchronous_commit = off")
        await _checkpoint_rarely(connection, "16GB")
        await _keep_samples(connection)
        copying = [await _copying(connection, table) for table in ("runs", *_TABLES)]
        for first in range(0, runs, BATCH):
            async with connection.transaction():
                await _choose(connection, first, min(first + BATCH, runs), runs)
                for statement in (*copying, _FEW):
                    await connection.execute(statement)
        await connection.execute("VACUUM ANALYZE")
        await _checkpoint_rarely(connection, None)
        await connection.execute("CHECKPOINT")
    finally:
        await connection.close()


async def _checkpoint_rarely(connection: asyncpg.Connection, size: str | None) -> None:
    """None: as before."""
    await connection.execute("ALTER SYSTEM " + (f"SET max_wal_size = '{size}'" if size else "RESET max_wal_size"))
    await connection.execute("SELECT pg_reload_conf()")


async def _samples(place: Place) -> None:
    """A few runs of each kind, their logs stored."""
    client = place.clients[0]
    for name, source in (("build", BUILD), ("broken", BROKEN)):
        await client.ask("PUT", f"/workflows/{name}", {"source": source})
    subscription = {"url": "http://127.0.0.1:9/", "types": ["stage.decided"]}
    await client.ask("PUT", "/subscription", subscription)
    for name in SHARE:
        run = await place.system.start_run(name)
        view = await place.system.wait(run)
        for stage in view["stages"]:
            for job in stage["jobs"]:
                await place.system.log_of(run, job["name"])


async def _keep_samples(connection: asyncpg.Connection) -> None:
    """Once nothing is on its way any more."""
    async with asyncio.timeout(30):
        while await connection.fetchval(
            "SELECT (SELECT count(*) FROM events WHERE sent_at IS NULL) "
            "+ (SELECT count(*) FROM logs WHERE completed_at IS NULL)"
        ):
            await asyncio.sleep(0.1)
    await connection.execute(
        "CREATE TEMP TABLE samples AS SELECT DISTINCT ON (workflow) id, workflow FROM runs ORDER BY workflow, number DESC;"
        "CREATE TEMP TABLE copies (old uuid, workflow text, new uuid, n bigint, age interval)"
    )


async def _choose(connection: asyncpg.Connection, first: int, end: int, runs: int) -> None:
    """Which run is copied to which new one."""
    await connection.execute("TRUNCATE copies")
    await connection.execute(
        "INSERT INTO copies SELECT s.id, s.workflow, uuidv7(-m.age), m.n, m.age FROM ("
        "SELECT n, ($3 - n) * interval '2 seconds' AS age, CASE WHEN n % 100 < $4 THEN 'l1' WHEN n % 100 < $5 THEN 'build' "
        "ELSE 'broken' END AS kind FROM generate_series($1::bigint, $2::bigint - 1) n) m "
        "JOIN samples s ON s.workflow = m.kind ORDER BY m.n",
        first, end, runs, SHARE["l1"], SHARE["l1"] + SHARE["build"],
    )  # fmt: skip
    await connection.execute("ANALYZE copies")


async def _copying(connection: asyncpg.Connection, table: str) -> str:
    columns = await connection.fetch(
        "SELECT column_name AS name, data_type AS type FROM information_schema.columns WHERE table_name = $1 "
        "AND table_schema = current_schema() AND is_identity = 'NO' ORDER BY ordinal_position",
        table,
    )
    values = []
    for name, kind in columns:
        if name == "id":
            values.append("c.new" if table == "runs" else _ID)
        elif name in _EXPRESSIONS:
            values.append(_EXPRESSIONS[name])
        else:
            values.append(f"t.{name} - c.age" if kind == "timestamp with time zone" else f"t.{name}")
    names = ", ".join(f'"{name}"' for name, _ in columns)
    key = "id" if table == "runs" else "run"
    source = f"copies c JOIN {table} t ON t.{key} = c.old ORDER BY c.n"
    return f"INSERT INTO {table} ({names}) SELECT {', '.join(values)} FROM {source}"
