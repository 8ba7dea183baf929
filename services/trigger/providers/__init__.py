"""Who sends hooks, one module each: how a request of theirs is proven genuine, and what it says.

To add one, write a module with a `Provider` and put it in the table. Everything else (limits, deduplication, the run) is
the same for all.
"""

from __future__ import annotations

from services.trigger.providers.generic import GENERIC
from services.trigger.providers.gitea import GITEA
from services.trigger.providers.github import GITHUB
from services.trigger.providers.protocol import Provider

PROVIDERS: dict[str, Provider] = {provider.name: provider for provider in (GITHUB, GITEA, GENERIC)}
"""The last part of a hook's address -> provider."""
