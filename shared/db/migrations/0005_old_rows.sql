-- Old answers to requests with an Idempotency-Key and old messages of hooks are found by their age, and deleted.
CREATE INDEX idempotency_keys_age ON idempotency_keys (created_at);
CREATE INDEX hook_deliveries_age ON hook_deliveries (received_at);
