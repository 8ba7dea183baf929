"""The faults, in an order drawn from the seed: a deck is shuffled, played, and shuffled again.

A fault strikes a target (a replica, a server, a link), holds for a while, and is mended; faults of different targets
overlap, of the same target they do not. When one strikes, a small run is started: how long it takes is the time to recover.
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from tests.chaos.ears import Receiver
from tests.chaos.load import Load
from tests.chaos.place import LETTERS, NAMES, SERVERS, Place, Replica, faketime
from tests.chaos.pods import SIMULATED_NODES, PodEngine
from tests.chaos.proxy import Proxy

BREATH = 60.0
"""Seconds to wait at most, after each deck, until all its faults are mended and the runs started with them are over."""
BROKER_SPARE = 20 << 20
"""Bytes that the broker's full disk still has: below 50 MB it takes no more messages. With none at all it ends itself, which is
its own weakness and a kill like any other."""
REST = 5.0
"""Seconds for which a server is left alone after a fault."""
SKEW = 60
"""Seconds by which a clock may be wrong, in either direction."""


@dataclass(slots=True)
class Storm:
    """Strike until told to stop. `told` prints a line."""

    place: Place
    load: Load
    receiver: Receiver
    rng: random.Random
    wanted: frozenset[str]
    pace: float
    decks: int | None
    told: Callable[[str], None]
    struck: Counter[str] = field(default_factory=Counter)
    recoveries: list[float] = field(default_factory=list)
    impossible: dict[str, str] = field(default_factory=dict)
    """Faults that cannot be made on this machine, and why."""
    _busy: set[str] = field(default_factory=set)

    async def rage(self, calm: asyncio.Event) -> None:
        """Until `calm` is set and each fault has struck, or all decks are played; returns once everything is mended."""
        deck: list[str] = []
        played = 0
        struck: set[asyncio.Task[None]] = set()
        async with asyncio.TaskGroup() as group:
            while not calm.is_set() or (deck and played == 1):
                if not deck:
                    if played == self.decks:
                        break
                    played += 1
                    # A system that is kept down shows nothing: each deck begins on one that has come up again.
                    if struck:
                        await asyncio.wait(struck, timeout=BREATH)
                    struck.clear()
                    deck = [name for name in FAULTS for _ in range(FAULTS[name].cards) if self._possible(name)]
                    self.rng.shuffle(deck)
                name = deck.pop()
                # Drawn here, in order, and not when the fault has its turn: the same seed gives the same storm.
                rng = random.Random(self.rng.getrandbits(64))
                struck.add(group.create_task(self._strike(name, rng)))
                await asyncio.sleep(self.rng.uniform(0.5, 1.5) * self.pace)

    def _possible(self, name: str) -> bool:
        if name not in self.wanted:
            return False
        if name.startswith("disk") and not self.place.disks[name.partition(":")[2]].real:
            self.impossible[name] = "a file system of its own cannot be mounted (needs root)"
            return False
        if name.startswith("cluster:"):
            return isinstance(self.place.engine, PodEngine)
        if name == "api-server":
            return isinstance(self.place.engine, PodEngine) and self.place.engine.cluster.own is not None
        if name == "node":
            return isinstance(self.place.engine, PodEngine) and self.place.engine.simulated
        if name == "clock" and faketime() is None:
            self.impossible[name] = "libfaketime is not installed (Debian: faketime)"
            return False
        return True

    async def _strike(self, name: str, rng: random.Random) -> None:
        fault = FAULTS[name]
        target = fault.target(rng)
        while not self._busy.isdisjoint(target):
            await asyncio.sleep(0.1)
        self._busy.update(target)
        try:
            self.struck[name] += 1
            self.told(f"{name} {' '.join(sorted(target))}")
            probing = asyncio.create_task(self.load.probe())
            await fault.act(self, rng, target)
            if not self.place.disks.keys().isdisjoint(target):
                await asyncio.sleep(REST)
        finally:
            self._busy.difference_update(target)
        seconds = await probing
        if seconds is not None:
            self.recoveries.append(seconds)

    async def kill_api_server(self, rng: random.Random, target: list[str]) -> None:
        """kill -9 of the cluster's API server, which takes every watch and every followed log with it."""
        assert isinstance(self.place.engine, PodEngine)
        await self.place.engine.kill_api_server()

    async def lose_node(self, rng: random.Random, target: list[str]) -> None:
        """A simulated node disappears: for a moment, or until the cluster has given up the pods that were on it."""
        assert isinstance(self.place.engine, PodEngine)
        await self.place.engine.lose_node(target[0])
        await asyncio.sleep(rng.choice((3.0, 75.0)))
        await self.place.engine.make_node(target[0])

    # ------------------------------------------------------------ processes

    async def kill(self, rng: random.Random, target: list[str]) -> None:
        """kill -9, and a new process at once or after a while."""
        for each in target:
            await self._replica(each).kill()
        await asyncio.sleep(rng.choice((0.0, 0.5, 2.0)))
        for each in target:
            self._start(each)

    async def end(self, rng: random.Random, target: list[str]) -> None:
        """TERM, as in an upgrade; who does not end in time is killed, as Kubernetes does."""
        [each] = target
        replica = self._replica(each)
        replica.signal(signal.SIGTERM)
        if await replica.ended(30) is None:
            await replica.kill()
        self._start(each)

    async def freeze(self, rng: random.Random, target: list[str]) -> None:
        """STOP and CONT: a process that is swapped out or paused with its machine. Others take over what it holds."""
        [each] = target
        replica = self._replica(each)
        replica.signal(signal.SIGSTOP)
        await asyncio.sleep(rng.uniform(2, 12))
        replica.signal(signal.SIGCONT)

    async def skew(self, rng: random.Random, target: list[str]) -> None:
        """The process comes back with another clock."""
        [each] = target
        await self._replica(each).kill()
        self._start(each, rng.choice((-SKEW, SKEW)))

    def _replica(self, each: str) -> Replica:
        name, letter = each.split("-")
        return self.place.replicas[name, letter]

    def _start(self, each: str, offset: int | None = None) -> None:
        name, letter = each.split("-")
        kept = self.place.replicas[name, letter].offset
        self.place.start(name, letter, kept if offset is None else offset)

    # ------------------------------------------------------------ servers

    async def kill_database(self, rng: random.Random, _: list[str]) -> None:
        await self.place.database.kill()
        await asyncio.sleep(rng.choice((0.0, 1.0)))
        await self.place.database.start()

    async def kill_broker(self, rng: random.Random, _: list[str]) -> None:
        await self.place.broker.kill()
        await asyncio.sleep(rng.choice((0.0, 1.0)))
        await self.place.broker.start()

    async def freeze_broker(self, rng: random.Random, _: list[str]) -> None:
        await self.place.broker.pause()
        await asyncio.sleep(rng.uniform(1, 6))
        await self.place.broker.resume()

    async def objects_away(self, rng: random.Random, _: list[str]) -> None:
        for link in self.place.links_to("objects"):
            link.refuse()
        await asyncio.sleep(10)
        for link in self.place.links_to("objects"):
            link.heal()

    async def fill_disk(self, rng: random.Random, target: list[str]) -> None:
        """The server's disk has no room for some seconds. One that has given up is started again, as an init would."""
        [server] = target
        disk = self.place.disks[server]
        disk.fill(BROKER_SPARE if server == "broker" else rng.choice((0, 1 << 16, 1 << 20)))
        await asyncio.sleep(rng.uniform(3, 8) if server == "database" else rng.uniform(8, 14))
        disk.clear()
        if server == "database" and not self.place.database.alive():
            await self.place.database.close()
            await self.place.database.start()
        if server == "broker" and not self.place.broker.alive():
            await self.place.broker.start()

    async def receiver_away(self, rng: random.Random, _: list[str]) -> None:
        self.receiver.away = True
        await asyncio.sleep(rng.uniform(1, 4))
        self.receiver.away = False

    # ------------------------------------------------------------ links

    async def cut(self, rng: random.Random, target: list[str]) -> None:
        for link in self._links(target):
            link.cut()

    async def refuse(self, rng: random.Random, target: list[str]) -> None:
        for link in self._links(target):
            link.refuse()
        await asyncio.sleep(rng.uniform(1, 5))
        for link in self._links(target):
            link.heal()

    async def delay(self, rng: random.Random, target: list[str]) -> None:
        for link in self._links(target):
            link.delay(lambda: rng.uniform(0.05, 0.4))
        await asyncio.sleep(rng.uniform(2, 5))
        for link in self._links(target):
            link.heal()

    async def swallow(self, rng: random.Random, target: list[str]) -> None:
        for link in self._links(target):
            link.swallow()

    def _links(self, target: list[str]) -> list[Proxy]:
        return [self.place.links[letter, server] for server, letter in (each.split(" of ") for each in target)]


@dataclass(frozen=True, slots=True)
class Fault:
    """`cards`: how often it is in the deck. `target` draws what it strikes."""

    cards: int
    target: Callable[[random.Random], list[str]]
    act: Callable[..., Awaitable[None]]


def _one_of(*names: str) -> Callable[[random.Random], list[str]]:
    return lambda rng: [f"{rng.choice(names)}-{rng.choice(LETTERS)}"]


def _one_or_both(name: str) -> Callable[[random.Random], list[str]]:
    """One replica, or from time to time both at once."""
    return lambda rng: [f"{name}-{letter}" for letter in rng.choice((("a",), ("b",), ("a",), ("b",), LETTERS))]


def _link(*servers: str) -> Callable[[random.Random], list[str]]:
    return lambda rng: [f"{rng.choice(servers)} of {rng.choice(LETTERS)}"]


def _fixed(name: str) -> Callable[[random.Random], list[str]]:
    return lambda _: [name]


FAULTS: dict[str, Fault] = {
    **{f"kill:{name}": Fault(1, _one_or_both(name), Storm.kill) for name in NAMES},
    "end": Fault(1, _one_of(*NAMES), Storm.end),
    "freeze": Fault(1, _one_of(*NAMES), Storm.freeze),
    "clock": Fault(2, _one_of(*NAMES), Storm.skew),
    "api-server": Fault(1, _fixed("api-server"), Storm.kill_api_server),
    "node": Fault(1, lambda rng: [rng.choice(SIMULATED_NODES)], Storm.lose_node),
    "database": Fault(1, _fixed("database"), Storm.kill_database),
    "broker": Fault(1, _fixed("broker"), Storm.kill_broker),
    "broker-frozen": Fault(1, _fixed("broker"), Storm.freeze_broker),
    "objects": Fault(1, lambda _: ["objects", *(f"objects of {letter}" for letter in LETTERS)], Storm.objects_away),
    "receiver": Fault(1, _fixed("receiver"), Storm.receiver_away),
    "disk:database": Fault(1, _fixed("database"), Storm.fill_disk),
    "disk:broker": Fault(1, _fixed("broker"), Storm.fill_disk),
    "disk:objects": Fault(1, _fixed("objects"), Storm.fill_disk),
    "cut": Fault(2, _link(*SERVERS), Storm.cut),
    "refuse": Fault(1, _link(*SERVERS), Storm.refuse),
    "delay": Fault(1, _link(*SERVERS), Storm.delay),
    "half-open": Fault(2, _link(*SERVERS), Storm.swallow),
    # Faults of their own, so that the table tells of them: each takes watches and followed logs along.
    "cluster:cut": Fault(2, _link("cluster"), Storm.cut),
    "cluster:refuse": Fault(1, _link("cluster"), Storm.refuse),
    "cluster:delay": Fault(1, _link("cluster"), Storm.delay),
    "cluster:half-open": Fault(2, _link("cluster"), Storm.swallow),
}
"""All faults by name."""
ONLY_IF_NAMED = frozenset({"disk:objects"})
"""SeaweedFS, the S3 of the tests, may lose what it has confirmed while its disk is full, and refuse a folder from then on."""
