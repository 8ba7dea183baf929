"""The servers that tests start: they work, they come back after a kill, and the fixtures keep tests apart."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import aio_pika
import aiohttp
import asyncpg

from shared.embedded.process import holds
from tests.servers.dockerd import Dockerd
from tests.servers.rabbitmq import RabbitMQ
from tests.servers.registry import Registry, started_registry


async def test_each_test_has_a_database_of_its_own_with_the_schema(database: str, empty_database: str) -> None:
    with_schema = await asyncpg.connect(database)
    without = await asyncpg.connect(empty_database)
    try:
        assert await with_schema.fetchval("SELECT count(*) FROM runs") == 0
        assert await without.fetchval("SELECT to_regclass('runs')") is None
    finally:
        await with_schema.close()
        await without.close()


async def test_a_quorum_queue_keeps_a_confirmed_message_over_kill(rabbitmq: RabbitMQ, amqp_url: str) -> None:
    connection = await aio_pika.connect(amqp_url)
    channel = await connection.channel()
    await channel.declare_queue("q", durable=True, arguments={"x-queue-type": "quorum"})
    message = aio_pika.Message(b"kept", delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
    await channel.default_exchange.publish(message, "q")
    await rabbitmq.restart()
    connection = await aio_pika.connect(amqp_url)
    queue = await (await connection.channel()).get_queue("q")
    assert (await queue.get(timeout=10)).body == b"kept"
    await connection.close()


async def test_a_container_runs_from_a_made_image_and_reaches_this_machine(dockerd: Dockerd, tmp_path: Path) -> None:
    async with started_registry(tmp_path, bind=dockerd.gateway) as registry:
        command = ["wget", "-q", "-O", "-", f"{registry.url}/v2/"]
        output = await _run(dockerd, {"Image": "hubflow-test/busybox", "Cmd": command})
    assert "{}" in output


async def test_image_settings_count(dockerd: Dockerd) -> None:
    assert "entry from cmd in /work as 1000 with image value" in await _run(
        dockerd, {"Image": "hubflow-test/component"}
    )
    assert "hi" in await _run(dockerd, {"Image": "hubflow-test/scratch", "Cmd": ["hi"]})


async def test_dockerd_comes_back_after_a_kill(dockerd: Dockerd) -> None:
    before = dockerd.pid()
    await dockerd.restart()
    assert dockerd.pid() != before
    assert "hi" in await _run(dockerd, {"Image": "hubflow-test/scratch", "Cmd": ["hi"]})


async def test_the_registry_answers(registry: Registry) -> None:
    async with aiohttp.ClientSession() as session, session.get(f"{registry.url}/v2/") as response:
        assert response.status == 200


async def test_nothing_is_left_when_a_test_run_is_killed(dockerd: Dockerd, tmp_path: Path) -> None:
    """A child of ours starts a dockerd with a container and is killed; container, mounts and bridge must go."""
    script = (
        "import asyncio, sys\nfrom pathlib import Path\n"
        "from tests.servers.dockerd import started_dockerd\n"
        "from tests.servers.images import TEST_IMAGES, write_archive\n"
        "async def main():\n"
        "    folder = Path(sys.argv[1])\n"
        "    async with started_dockerd(folder) as engine:\n"
        "        await engine.load(write_archive(folder / 'i.tar', TEST_IMAGES[:1]))\n"
        "        body = {'Image': 'hubflow-test/busybox', 'Cmd': ['sleep', '9876']}\n"
        "        made = await engine.api('POST', '/containers/create', body)\n"
        "        await engine.api('POST', '/containers/' + made['Id'] + '/start')\n"
        "        print(engine.pid(), engine.gateway, flush=True)\n"
        "        await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, str(tmp_path), stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert child.stdout is not None
    pid, gateway = (await child.stdout.readline()).decode().split()
    child.kill()
    await child.wait()

    def gone() -> bool:
        mounts = Path("/proc/self/mountinfo").read_text()
        addresses = subprocess.run(["ip", "address"], capture_output=True, text=True, check=True).stdout
        return not Path(f"/proc/{pid}").exists() and str(tmp_path) not in mounts and gateway not in addresses

    assert await holds(gone, 30)
    assert not [each for each in _command_lines() if "sleep 9876" in each]
    assert await dockerd.ping()  # another engine is left alone


async def _run(engine: Dockerd, body: dict[str, object]) -> str:
    made = await engine.api("POST", "/containers/create", body)
    await engine.api("POST", f"/containers/{made['Id']}/start")
    await engine.api("POST", f"/containers/{made['Id']}/wait")
    output = await engine.api("GET", f"/containers/{made['Id']}/logs?stdout=1&stderr=1")
    await engine.api("DELETE", f"/containers/{made['Id']}?force=1")
    return str(output)


def _command_lines() -> list[str]:
    lines = []
    for pid in (entry for entry in Path("/proc").iterdir() if entry.name.isdigit()):
        try:
            lines.append((pid / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return lines
