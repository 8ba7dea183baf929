"""The runs: started in an order drawn from the seed, decided about, cancelled, and their containers removed by hand."""

from __future__ import annotations

import asyncio
import random
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.chaos.client import Client, RefusedError
from tests.chaos.ears import Receiver
from tests.chaos.place import Place
from tests.chaos.pods import PodEngine
from tests.chaos.workflows import Asked, End, Kind

API = "/api/v1"
CANARY = "canary"
TENANTS: dict[str, dict[str, int]] = {
    CANARY: {},
    "ada": {"runs": 6, "jobs": 6},
    "bob": {"jobs": 4},
    "cleo": {"runs": 3},
    "dan": {},
}
"""Tenant -> quota."""
WEBHOOKS = ("run.finished", "job.ended")
END_WITHIN = 420.0
"""Seconds from its start after which a run that is not over counts as stuck. Longer than the longest time by which anything
in the system finds out that a peer has silently gone, several times over."""


@dataclass(slots=True)
class Planned:
    """One run as it was drawn."""

    kind: Kind
    tenant: str
    inputs: dict[str, str]
    rng: random.Random

    id: str = ""
    asked: Asked = field(default_factory=Asked)
    begun: float = 0.0
    seconds: float | None = None
    """From its start until it was over."""
    trouble: str = ""
    """Why the load could not do with it what it wanted."""

    @property
    def end(self) -> End:
        return self.kind.end(self.inputs, self.asked)


def plan(runs: int, rng: random.Random, repertoire: Sequence[Kind]) -> list[Planned]:
    """What will be started, in this order."""
    kinds = rng.choices(repertoire, [kind.weight for kind in repertoire], k=runs)
    tenants = [tenant for tenant in TENANTS if tenant != CANARY]
    return [Planned(kind, rng.choice(tenants), kind.inputs(rng), random.Random(rng.getrandbits(64))) for kind in kinds]


class Load:
    """Everything that users do to one place. `repertoire`: the kinds of run that there are; one is named `probe`."""

    def __init__(self, place: Place, http: aiohttp.ClientSession, seed: int, repertoire: Sequence[Kind]) -> None:
        self._place = place
        self._repertoire = repertoire
        self._probe = next(kind for kind in repertoire if kind.name == "probe")
        self.clients = {
            tenant: Client(http, place.fronts(), place.token, tenant, random.Random(seed)) for tenant in TENANTS
        }
        self.runs: list[Planned] = []
        self.removed = 0

    async def prepare(self, witness: str, receiver: Receiver) -> None:
        """Tenants with quotas and subscriptions, and all workflows."""
        for tenant, quota in TENANTS.items():
            client = self.clients[tenant]
            await client.post(f"{API}/tenants", {"name": tenant, "quota": quota})
            made = await client.post(
                f"{API}/subscription", {"url": f"{receiver.url}/{tenant}", "types": list(WEBHOOKS)}, method="PUT"
            )
            receiver.secrets[tenant] = made["secret"]
            for kind in self._repertoire:
                await client.post(f"{API}/workflows/{kind.name}", {"source": kind.source(witness)}, method="PUT")

    async def go(self, planned: Sequence[Planned], at_once: int) -> None:
        """Do all of them, `at_once` at a time."""
        waiting = iter(planned)

        async def work() -> None:
            for each in waiting:
                await self.do(each)

        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(work())

    async def probe(self) -> float | None:
        """Seconds until a run that is started now is over."""
        run = Planned(self._probe, CANARY, {"X": "x", "SECONDS": "0"}, random.Random(0))
        await self.do(run)
        return run.seconds

    async def do(self, run: Planned) -> None:
        """Start it, let people act, and wait for its end."""
        self.runs.append(run)
        client, run.begun = self.clients[run.tenant], time.monotonic()
        try:
            async with asyncio.timeout(END_WITHIN):
                answer = await client.post(f"{API}/workflows/{run.kind.name}/runs", {"inputs": run.inputs})
                run.id = answer["id"]
                if run.kind.people:
                    await _PEOPLE[run.kind.people](self, client, run)
                await self.wait(client, run)
                run.seconds = time.monotonic() - run.begun
        except TimeoutError:
            run.trouble = f"not over after {END_WITHIN:g} s"
        except RefusedError as error:
            run.trouble = str(error)

    async def wait(self, client: Client, run: Planned, until: str = "finished") -> Any:
        while True:
            view = await client.get(f"{API}/runs/{run.id}?wait=20&until={until}")
            if view["finished_at"] or (until == "paused" and view["state"] == "paused"):
                return view

    # ------------------------------------------------------------ people

    async def decide(self, client: Client, run: Planned, action: str) -> None:
        """Also early, while the jobs of the stage still run. Who comes second is told what was decided."""
        try:
            await client.post(f"{API}/runs/{run.id}/stages/ask/decision", {"action": action})
            run.asked.decision = action
        except RefusedError as error:
            if error.document.get("code") != "already-decided":
                raise
            run.asked.decision = error.document["decision"]["action"]

    async def approve(self, client: Client, run: Planned) -> None:
        await self._hesitate(client, run)
        await self.decide(client, run, "approve")

    async def refuse(self, client: Client, run: Planned) -> None:
        await self._hesitate(client, run)
        await self.decide(client, run, "cancel")

    async def contest(self, client: Client, run: Planned) -> None:
        """Two people at the same time, who want different things."""
        await self._hesitate(client, run)
        first, second = run.rng.sample(("approve", "cancel"), 2)
        decided: list[str] = []

        async def one(action: str) -> None:
            mine = Planned(run.kind, run.tenant, run.inputs, run.rng, id=run.id)
            await self.decide(client, mine, action)
            decided.append(mine.asked.decision)

        await asyncio.gather(one(first), one(second), return_exceptions=False)
        if len(set(decided)) != 1:
            run.trouble = f"two people were told different decisions: {decided}"
        run.asked.decision = decided[0]

    async def cancel(self, client: Client, run: Planned) -> None:
        await asyncio.sleep(run.rng.choice((0.0, run.rng.uniform(0, 0.5), run.rng.uniform(0, 5))))
        try:
            await client.post(f"{API}/runs/{run.id}/cancel", {"reason": "chaos"})
            run.asked.cancelled = True
        except RefusedError as error:
            if error.document.get("code") != "run-over":
                raise

    async def remove(self, client: Client, run: Planned) -> None:
        """Somebody removes the container of its job while it runs."""
        while True:
            view = await client.get(f"{API}/runs/{run.id}/jobs/victim")
            if view["state"] == "running" and view["attempt"] == 1:
                break
            await asyncio.sleep(0.1)
        await self._remove_container(view["attempts"][0]["container"])
        self.removed += 1

    async def snatch(self, client: Client, run: Planned) -> None:
        """Somebody removes the container of its job as soon as there is one, if it has not ended by then."""
        since = 0
        while not (attempts := (await client.get(f"{API}/runs/{run.id}/jobs/victim"))["attempts"]):
            since = (await client.get(f"{API}/runs/{run.id}?wait=20&until=change&since={since}"))["seq"]
        await self._remove_container(attempts[0]["container"])
        self.removed += 1

    async def _remove_container(self, name: str) -> None:
        if isinstance(self._place.engine, PodEngine):
            await self._place.engine.remove(name)
        elif self._place.engine is not None:
            await self._place.engine.api("DELETE", f"/containers/{name}?force=1")
        else:
            await asyncio.to_thread(shutil.rmtree, self._place.jobs_folder / "containers" / name, ignore_errors=True)

    async def _hesitate(self, client: Client, run: Planned) -> None:
        if run.rng.random() < 0.6:
            await self.wait(client, run, until="paused")
        else:
            await asyncio.sleep(run.rng.uniform(0, 1))

    # ------------------------------------------------------------ how far

    def progress(self) -> str:
        over = sum(run.seconds is not None for run in self.runs)
        open_ = Counter(run.kind.name for run in self.runs if run.seconds is None and not run.trouble)
        return (
            f"{over} runs over, {sum(open_.values())} open ({', '.join(f'{n} {k}' for k, n in open_.most_common(6))})"
        )


_PEOPLE = {
    "approve": Load.approve,
    "refuse": Load.refuse,
    "contest": Load.contest,
    "cancel": Load.cancel,
    "remove": Load.remove,
    "snatch": Load.snatch,
}
