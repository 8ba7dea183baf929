"""Who hears what: console hears no events of its own (its readers listen, see live.py), only requests."""

from __future__ import annotations

from services.console.routes import (
    artifacts,
    decisions,
    description,
    files,
    logs,
    operation,
    runs,
    subscriptions,
    tenants,
    workflows,
)
from shared.api import Endpoint

ENDPOINTS: tuple[Endpoint, ...] = (
    *tenants.ENDPOINTS,
    *workflows.ENDPOINTS,
    *runs.ENDPOINTS,
    *decisions.ENDPOINTS,
    *logs.ENDPOINTS,
    *artifacts.ENDPOINTS,
    *files.ENDPOINTS,
    *subscriptions.ENDPOINTS,
    *operation.ENDPOINTS,
    *description.ENDPOINTS,
)
