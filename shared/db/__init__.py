"""PostgreSQL: pool and transactions (database.py), migrations (migrate.py), events on their way (outbox.py)."""
