"""What the handlers of console may touch."""

from __future__ import annotations

from dataclasses import dataclass

from services.console.config import ConsoleSettings
from services.console.followers import Followers
from services.console.live import Changes
from services.console.store.runs import Glances
from shared.bus.protocol import Bus
from shared.clock import Clock
from shared.db.database import Database
from shared.secret_masks import SecretMasks
from shared.service import Host
from shared.vault import Vault


@dataclass(frozen=True, slots=True)
class Context:
    """All that the handlers may touch."""

    host: Host
    settings: ConsoleSettings
    changes: Changes
    glances: Glances
    masks: SecretMasks
    followers: Followers

    @property
    def database(self) -> Database:
        return self.host.database

    @property
    def bus(self) -> Bus:
        return self.host.bus

    @property
    def vault(self) -> Vault:
        return self.host.vault

    @property
    def clock(self) -> Clock:
        return self.host.clock
