"""What a patient user does: asks one front or the other, again and again, always with the same Idempotency-Key."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Sequence
from typing import Any

import aiohttp

TRY_SECONDS = 45.0
"""How long one request may take. A half-open connection to a front is noticed by nobody else."""
AGAIN = frozenset({429, 500, 502, 503, 504})


class RefusedError(Exception):
    """An answer that no repetition will change."""

    def __init__(self, status: int, document: Any) -> None:
        super().__init__(f"{status}: {document}")
        self.status = status
        self.document = document if isinstance(document, dict) else {}


class Client:
    """The API of one tenant."""

    def __init__(
        self, http: aiohttp.ClientSession, fronts: Sequence[str], token: str, tenant: str, rng: random.Random
    ) -> None:
        self._http, self._fronts, self._rng = http, fronts, rng
        self._headers = {"Authorization": f"Bearer {token}", "Hubflow-Tenant": tenant}
        self.internal_errors = 0
        """Answers of status 500: never right, whatever is broken."""

    async def get(self, path: str, *, patience: float = 600.0) -> Any:
        return await self._ask("GET", path, None, {}, patience)

    async def post(self, path: str, body: Any, *, method: str = "POST", patience: float = 600.0) -> Any:
        return await self._ask(method, path, body, {"Idempotency-Key": str(uuid.uuid4())}, patience)

    async def _ask(self, method: str, path: str, body: Any, headers: dict[str, str], patience: float) -> Any:
        """The answer, however often it takes. Raises RefusedError, and TimeoutError after `patience` seconds."""
        async with asyncio.timeout(patience):
            while True:
                try:
                    status, answer = await self._once(method, path, body, headers)
                except (aiohttp.ClientError, OSError, TimeoutError):
                    if (task := asyncio.current_task()) is not None and task.cancelling():
                        raise
                    await asyncio.sleep(0.2)
                    continue
                self.internal_errors += status == 500
                if status not in AGAIN:
                    if status >= 400:
                        raise RefusedError(status, answer)
                    return answer
                await asyncio.sleep(0.2)

    async def _once(self, method: str, path: str, body: Any, headers: dict[str, str]) -> tuple[int, Any]:
        url = self._rng.choice(self._fronts) + path
        timeout = aiohttp.ClientTimeout(TRY_SECONDS)
        async with self._http.request(
            method, url, json=body, headers={**self._headers, **headers}, timeout=timeout
        ) as response:
            if "json" in response.content_type:
                return response.status, await response.json()
            return response.status, await response.read()
