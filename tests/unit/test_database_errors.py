"""What asyncpg raises when a server goes away, in the words of Hubflow."""

from __future__ import annotations

import asyncpg
import pytest

from shared.db.database import translated_errors
from shared.errors import TemporaryError


@pytest.mark.parametrize(
    "error",
    [
        # Seen after kill -9 of PostgreSQL: services ended of it, and requests were answered with 500.
        asyncpg.InternalClientError("cannot switch to state 12; another operation (2) is in progress"),
        asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation"),
        asyncpg.InterfaceError("connection is closed"),
        asyncpg.CannotConnectNowError("the database system is starting up"),
        asyncpg.InvalidPasswordError("password authentication failed"),
        asyncpg.InvalidCatalogNameError("database does not exist"),
        ConnectionRefusedError(111, "Connect call failed"),
        # Of a statement in a transaction, after a migration: the next try plans it anew.
        asyncpg.InvalidCachedStatementError("cached statement plan is invalid due to a database schema change"),
    ],
)
def test_t77_a_server_that_goes_away_is_temporary(error: Exception) -> None:
    with pytest.raises(TemporaryError), translated_errors():
        raise error
