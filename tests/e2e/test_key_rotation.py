"""HUBFLOW_SECRET_KEY is changed as docs/install-kubernetes.md says, while runs with secrets go on."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from shared.db.database import open_database
from shared.embedded import S3Address
from shared.errors import PermanentError
from shared.vault import Vault, new_key
from tests.e2e.system import FRONT, SERVICES, System, open_system
from tests.servers.rabbitmq import RabbitMQ

pytestmark = pytest.mark.servers
REPOSITORY = Path(__file__).parents[2]
BACKGROUND = [name for name in SERVICES if name not in FRONT]
WORKFLOW = """
name: rotated
stages:
- name: make
  jobs:
  - name: make
    env: {PASSWORD: "${{ secrets.PASSWORD }}"}
    script: echo "${#PASSWORD} of $PASSWORD"
- name: ask
  type: pause
- name: take
  jobs:
  - name: take
    env: {PASSWORD: "${{ secrets.PASSWORD }}"}
    script: echo "${#PASSWORD} of $PASSWORD"
"""


async def replace(system: System, keys: str) -> None:
    """A rolling update: the new processes are ready before the old ones end."""
    old = {name: system.processes(name) for name in BACKGROUND}
    for name in BACKGROUND:
        system.start(name, secret_key=keys)
    await system.ready()
    await asyncio.gather(*(system.end(name, old[name]) for name in BACKGROUND))
    await asyncio.to_thread(system.stop, "front")
    system.start("front", secret_key=keys)
    await system.ready()


async def reencrypt(system: System, keys: str) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cli.main", "secret", "reencrypt", cwd=REPOSITORY,
        env={**system.environment, "HUBFLOW_SECRET_KEY": keys}, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode()


async def test_the_key_is_changed_while_runs_with_secrets_go_on(
    tmp_path: Path, database: str, s3: S3Address, rabbitmq: RabbitMQ
) -> None:
    old, new = new_key(), new_key()
    async with open_system(tmp_path, database, s3, await rabbitmq.new_vhost(), secret_key=old) as system:
        await system.api("PUT", "/api/v1/secrets/PASSWORD", {"value": "correct-horse"})
        workflow = await system.apply(WORKFLOW)
        runs = [await system.start_run(workflow)]
        for keys in (f"{old},{new}", f"{new},{old}"):
            await replace(system, keys)
            runs.append(await system.start_run(workflow))
        assert await reencrypt(system, f"{new},{old}") == "2 of 2 secrets were encrypted anew\n"
        assert await reencrypt(system, f"{new},{old}") == "0 of 2 secrets were encrypted anew\n"
        await replace(system, new)
        runs.append(await system.start_run(workflow))
        for run in runs:
            await system.wait(run, until="paused")
            await system.api("POST", f"/api/v1/runs/{run}/stages/ask/decision", {"action": "approve"})
        for run in runs:
            assert (await system.wait(run))["state"] == "succeeded"
            for job in ("make", "take"):
                assert await system.log_of(run, job) == "13 of ***\n"


async def test_an_encryption_that_is_killed_can_be_begun_again(database: str, tmp_path: Path) -> None:
    old, new = new_key(), new_key()
    environment = {"HUBFLOW_DATABASE_URL": database, "HUBFLOW_SECRET_KEY": f"{new},{old}"}
    async with open_database(database) as opened:
        await opened.execute("INSERT INTO tenants (name) VALUES ('acme')")
        sealed = [Vault(old).encrypt(f"value {number}") for number in range(1000)]
        await opened.execute(
            "INSERT INTO secrets (tenant, name, value) SELECT 'acme', 's' || n, v "
            "FROM unnest($1::bytea[]) WITH ORDINALITY AS t (v, n)",
            sealed,
        )

        async def done() -> int:
            values = await opened.fetch("SELECT value FROM secrets")
            return sum(Vault(f"{new},{old}").renewed(row["value"]) is None for row in values)

        # The last page waits for this lock: the command is killed in its midst.
        async with opened.transaction() as tx:
            await tx.connection.execute("UPDATE secrets SET name = name WHERE name = 's999'")
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "cli.main", "secret", "reencrypt", cwd=REPOSITORY, env=environment
            )
            while await done() < 900:
                await asyncio.sleep(0.05)
            process.kill()
            await process.wait()
        assert await done() == 900
        again = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "cli.main", "secret", "reencrypt", cwd=REPOSITORY, env=environment,
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, _ = await again.communicate()
        assert out == b"100 of 1000 secrets were encrypted anew\n"
        values = {Vault(new).decrypt(row["value"]) for row in await opened.fetch("SELECT value FROM secrets")}
        assert values == {f"value {number}" for number in range(1000)}


async def test_what_no_key_can_read_is_named_and_left_alone(database: str) -> None:
    old, new = new_key(), new_key()
    async with open_database(database) as opened:
        await opened.execute("INSERT INTO tenants (name) VALUES ('acme')")
        for name, key in (("LOST", new_key()), ("KEPT", old)):
            await opened.execute("INSERT INTO secrets VALUES ('acme', $1, $2)", name, Vault(key).encrypt("x"))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "cli.main", "secret", "reencrypt", cwd=REPOSITORY, stderr=asyncio.subprocess.PIPE,
            env={"HUBFLOW_DATABASE_URL": database, "HUBFLOW_SECRET_KEY": f"{new},{old}"},
        )  # fmt: skip
        _, said = await process.communicate()
        assert process.returncode == 1
        assert b"the secret acme/LOST" in said
        assert b"KEPT" not in said
        sealed = {row["name"]: row["value"] for row in await opened.fetch("SELECT name, value FROM secrets")}
        assert Vault(new).decrypt(sealed["KEPT"]) == "x"
        with pytest.raises(PermanentError):
            Vault(f"{new},{old}").decrypt(sealed["LOST"])
