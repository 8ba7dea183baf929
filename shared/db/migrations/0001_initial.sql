-- The first schema. Who owns a table (writes it) stands above it; others only read.
-- Migrations come as a part before and a part after the new code: the code of the release before must work on this schema.

-- ---------------------------------------------------------------- shared: events on their way, and events seen

-- Outbox and journal in one: a row is written in the transaction that causes the event, published after commit, and then marked as sent.
CREATE TABLE events (
    id          uuid PRIMARY KEY,
    tenant      text NOT NULL,
    run         uuid,
    seq         bigint,                      -- rises without gaps within a run; merged into the body when read
    type        text NOT NULL,
    body        bytea NOT NULL,              -- msgpack map, without seq
    created_at  timestamptz NOT NULL DEFAULT now(),
    claimed_at  timestamptz,                 -- when a sweep last took it up
    sent_at     timestamptz
);
CREATE INDEX events_unsent ON events (created_at) WHERE sent_at IS NULL;
CREATE UNIQUE INDEX events_of_run ON events (run, seq) WHERE run IS NOT NULL;
CREATE INDEX events_of_tenant ON events (tenant, id);

-- The last seq of each run. Its row lock makes the order of seq the order of commits.
CREATE TABLE run_counters (
    run  uuid PRIMARY KEY,
    seq  bigint NOT NULL
) WITH (fillfactor = 50);

-- Which consumer has handled which event.
CREATE TABLE inbox (
    consumer    text NOT NULL,
    event       uuid NOT NULL,
    handled_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (consumer, event)
);
CREATE INDEX inbox_age ON inbox (handled_at);

-- Messages that could not be handled, where the bus has no place of its own for them (in-process bus).
CREATE TABLE dead_events (
    id         uuid PRIMARY KEY,              -- derived from event and queue
    event      uuid NOT NULL,
    queue      text NOT NULL,
    topic      text NOT NULL,
    body       bytea NOT NULL,
    reason     text NOT NULL,
    tries      integer NOT NULL,
    parked_at  timestamptz NOT NULL DEFAULT now()
);

-- What must be done by one process only.
CREATE TABLE leases (
    name        text PRIMARY KEY,
    holder      text NOT NULL,
    expires_at  timestamptz NOT NULL
);

CREATE TABLE audit (
    id       uuid PRIMARY KEY,
    at       timestamptz NOT NULL DEFAULT now(),
    tenant   text,
    actor    text NOT NULL,                  -- "token:<name>", "link", "hook:<name>"
    action   text NOT NULL,                  -- "run.cancel", "tenant.create", ...
    subject  text NOT NULL,
    details  jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX audit_of_tenant ON audit (tenant, id);

-- ---------------------------------------------------------------- console: tenants, tokens, secrets, workflows

CREATE TABLE tenants (
    name        text PRIMARY KEY CHECK (name ~ '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$'),
    quota       jsonb NOT NULL DEFAULT '{}', -- {"runs": n, "jobs": n, "cpu_millis": n, "memory_bytes": n}; missing: unlimited
    created_at  timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE tokens (
    id            uuid PRIMARY KEY,
    tenant        text REFERENCES tenants (name), -- NULL: every tenant (operators)
    name          text NOT NULL,
    hash          bytea NOT NULL UNIQUE,     -- SHA-256 of the token, which has 256 random bits
    scopes        text[] NOT NULL,           -- "read", "run", "write", "approve", "admin"
    created_at    timestamptz NOT NULL DEFAULT now(),
    expires_at    timestamptz,
    revoked_at    timestamptz
);

CREATE TABLE secrets (
    tenant      text NOT NULL REFERENCES tenants (name),
    name        text NOT NULL,
    value       bytea NOT NULL,              -- Fernet token
    updated_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, name)
);

CREATE TABLE workflows (
    tenant      text NOT NULL REFERENCES tenants (name),
    name        text NOT NULL,
    version     integer NOT NULL,            -- the newest
    hook_secret bytea NOT NULL,              -- Fernet token: what its hooks are signed with
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now(),
    deleted_at  timestamptz,
    PRIMARY KEY (tenant, name)
);

CREATE TABLE workflow_versions (
    tenant      text NOT NULL,
    workflow    text NOT NULL,
    version     integer NOT NULL,
    source      text NOT NULL,               -- the file as it was applied
    document    jsonb NOT NULL,              -- the parsed model
    plan        jsonb NOT NULL,              -- what the scheduler walks through
    digest      text NOT NULL,
    created_by  text NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, workflow, version),
    FOREIGN KEY (tenant, workflow) REFERENCES workflows (tenant, name)
);

-- Answers to requests with an Idempotency-Key, so that a repeated request does nothing twice.
CREATE TABLE idempotency_keys (
    tenant       text NOT NULL,
    key          text NOT NULL,
    request_hash bytea NOT NULL,
    status       integer NOT NULL,
    response     jsonb NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, key)
);

-- ---------------------------------------------------------------- trigger: what came in

CREATE TABLE hook_deliveries (
    tenant       text NOT NULL,
    workflow     text NOT NULL,
    source       text NOT NULL,              -- "github", "gitea", "generic"
    delivery     text NOT NULL,              -- the sender's id, or the digest of the body
    fingerprint  text NOT NULL,              -- what it says (ref and commit), to drop the same said twice
    run          uuid,                       -- NULL: it started none
    outcome      text NOT NULL,
    received_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, workflow, source, delivery)
);
CREATE INDEX hook_deliveries_fingerprint ON hook_deliveries (tenant, workflow, fingerprint, received_at);

-- ---------------------------------------------------------------- scheduler: runs (trigger creates the row, nobody else writes it)

CREATE TABLE runs (
    id                uuid PRIMARY KEY,
    number            bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    tenant            text NOT NULL REFERENCES tenants (name),
    workflow          text NOT NULL,
    version           integer NOT NULL,
    trigger           jsonb NOT NULL,        -- {"type": "push", "by": ..., "git": {...}, ...}
    inputs            jsonb NOT NULL DEFAULT '{}',
    retry_of          uuid,
    concurrency_group text,
    state             text NOT NULL DEFAULT 'pending'
        CHECK (state IN ('pending', 'running', 'paused', 'cancelling', 'succeeded', 'failed', 'cancelled', 'timed_out')),
    reason            text NOT NULL DEFAULT '',
    message           text NOT NULL DEFAULT '',
    ending_state      text,                  -- how it will end once its jobs have stopped
    paused_seconds    double precision NOT NULL DEFAULT 0,
    created_at        timestamptz NOT NULL DEFAULT now(),
    admitted_at       timestamptz,
    started_at        timestamptz,
    finished_at       timestamptz,
    wake_at           timestamptz            -- when time itself will change something
);
CREATE INDEX runs_of_tenant ON runs (tenant, number DESC);
CREATE INDEX runs_of_workflow ON runs (tenant, workflow, number DESC);
CREATE INDEX runs_waking ON runs (wake_at) WHERE wake_at IS NOT NULL;
CREATE INDEX runs_unfinished ON runs (tenant, state, number) WHERE finished_at IS NULL;
CREATE INDEX runs_grouped ON runs (tenant, concurrency_group, number) WHERE finished_at IS NULL AND concurrency_group IS NOT NULL;

CREATE TABLE stages (
    run          uuid NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    position     integer NOT NULL,
    name         text NOT NULL,
    state        text NOT NULL
        CHECK (state IN ('waiting', 'running', 'paused', 'succeeded', 'failed', 'cancelled', 'timed_out', 'skipped')),
    reason       text NOT NULL DEFAULT '',
    message      text NOT NULL DEFAULT '',
    decision     jsonb,                      -- {"action", "by", "comment", "at"}
    started_at   timestamptz,
    paused_at    timestamptz,
    finished_at  timestamptz,
    PRIMARY KEY (run, position)
);

CREATE TABLE jobs (
    run           uuid NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    position      integer NOT NULL,
    tenant        text NOT NULL,
    stage         text NOT NULL,
    name          text NOT NULL,
    state         text NOT NULL
        CHECK (state IN ('waiting', 'ready', 'submitted', 'running', 'succeeded', 'failed', 'cancelled', 'timed_out', 'lost', 'skipped')),
    reason        text NOT NULL DEFAULT '',
    message       text NOT NULL DEFAULT '',
    attempt       integer NOT NULL DEFAULT 0,
    retries       integer NOT NULL DEFAULT 0,               -- of those the workflow allows
    infrastructure_retries integer NOT NULL DEFAULT 0,
    stopping      text NOT NULL DEFAULT '',                 -- the reason why it was asked to end
    cpu_millis    integer NOT NULL DEFAULT 0,
    memory_bytes  bigint NOT NULL DEFAULT 0,
    eligible_at   timestamptz,                              -- since when only quota holds it
    retry_at      timestamptz,
    ready_at      timestamptz,
    submitted_at  timestamptz,
    started_at    timestamptz,
    finished_at   timestamptz,
    reminded_at   timestamptz,                              -- when executor was last told (again)
    carried_from  uuid,                                     -- the run whose success it carries over
    PRIMARY KEY (run, position),
    UNIQUE (run, name)
) WITH (fillfactor = 70);
CREATE INDEX jobs_active ON jobs (tenant) INCLUDE (cpu_millis, memory_bytes) WHERE state IN ('ready', 'submitted', 'running');
CREATE INDEX jobs_eligible ON jobs (tenant, eligible_at) WHERE eligible_at IS NOT NULL AND state = 'waiting';

-- One row for each container ever asked for. Scheduler creates it; executor claims it.
CREATE TABLE attempts (
    container          text PRIMARY KEY,
    run                uuid NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    job                text NOT NULL,
    attempt            integer NOT NULL,
    created_at         timestamptz NOT NULL DEFAULT now(),
    claimed_at         timestamptz,          -- executor: from here on a container may exist
    submitted_at       timestamptz,          -- executor: the runtime has accepted the container
    stop_requested_at  timestamptz,          -- scheduler: it must not start any more
    UNIQUE (run, job, attempt)
);

-- ---------------------------------------------------------------- status_watcher (and executor, for what could not start): outcomes, once

CREATE TABLE attempt_outcomes (
    container    text PRIMARY KEY,
    run          uuid NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    job          text NOT NULL,
    attempt      integer NOT NULL,
    uid          text NOT NULL DEFAULT '',   -- of the container seen first; another of the same name is not believed
    running_at   timestamptz,                -- when running was told
    finished_at  timestamptz,                -- when the outcome was told
    state        text,
    reason       text NOT NULL DEFAULT '',
    message      text NOT NULL DEFAULT '',
    exit_code    integer,
    started_at   timestamptz,
    ended_at     timestamptz,
    outputs      jsonb NOT NULL DEFAULT '{}',
    result       jsonb,                      -- the wrapper's result document without its outputs
    removed_at   timestamptz,                -- when the container was removed
    UNIQUE (run, job, attempt)
);
CREATE INDEX attempt_outcomes_unremoved ON attempt_outcomes (finished_at) WHERE removed_at IS NULL;

-- Artifacts that jobs have kept; written with the outcome of their attempt.
CREATE TABLE artifacts (
    run         uuid NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    job         text NOT NULL,
    attempt     integer NOT NULL,
    name        text NOT NULL,
    tenant      text NOT NULL,
    object_key  text NOT NULL,
    index_key   text,
    bytes       bigint NOT NULL,
    sha256      text NOT NULL DEFAULT '',
    files       bigint NOT NULL DEFAULT 0,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (run, job, attempt, name)
);

-- ---------------------------------------------------------------- log_collector

CREATE TABLE logs (
    container    text PRIMARY KEY,
    run          uuid NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    job          text NOT NULL,
    attempt      integer NOT NULL,
    tenant       text NOT NULL,
    stage        text NOT NULL,
    holder       text NOT NULL,              -- the process that follows it, while its lease "log_collector:<holder>" lasts
    raw_offset   bigint NOT NULL DEFAULT 0,  -- bytes read from the runtime
    size         bigint NOT NULL DEFAULT 0,  -- bytes kept (after masking)
    segments     jsonb NOT NULL DEFAULT '[]',-- [{"offset", "size", "key"}] in object storage
    truncated    boolean NOT NULL DEFAULT false,
    completed_at timestamptz,
    UNIQUE (run, job, attempt)
);
CREATE INDEX logs_unfinished ON logs (holder) WHERE completed_at IS NULL;

-- The end of a live log, until it has grown into a segment.
CREATE TABLE log_tails (
    container    text NOT NULL REFERENCES logs (container) ON DELETE CASCADE,
    start        bigint NOT NULL,            -- offset of the first byte in the kept log
    data         bytea NOT NULL,
    PRIMARY KEY (container, start)
);

-- ---------------------------------------------------------------- console: decisions

-- The arbiter of "decides once": the first row wins, whoever writes it.
CREATE TABLE decisions (
    run      uuid NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    stage    text NOT NULL,
    action   text NOT NULL CHECK (action IN ('approve', 'cancel')),
    by       text NOT NULL,
    comment  text NOT NULL DEFAULT '',
    at       timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (run, stage)
);

-- ---------------------------------------------------------------- console: where a tenant's events go

CREATE TABLE subscriptions (
    id          uuid PRIMARY KEY,
    tenant      text NOT NULL UNIQUE REFERENCES tenants (name), -- one per tenant for now
    url         text NOT NULL,
    secret      bytea NOT NULL,              -- Fernet token of a Standard Webhooks secret
    types       text[] NOT NULL,             -- event types; empty: all of runs, stages and jobs
    created_at  timestamptz NOT NULL DEFAULT now(),
    disabled_at timestamptz
);

-- ---------------------------------------------------------------- notifier

CREATE TABLE deliveries (
    id            uuid PRIMARY KEY,          -- derived from subscription and event
    subscription  uuid NOT NULL REFERENCES subscriptions (id) ON DELETE CASCADE,
    tenant        text NOT NULL,
    event         uuid NOT NULL,
    payload       bytea NOT NULL,            -- the JSON body, as it was when the event came
    state         text NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'delivered', 'failed')),
    tries         integer NOT NULL DEFAULT 0,
    next_try_at   timestamptz,               -- while a try is under way: when it counts as lost
    holder        text,
    last_status   integer,
    last_error    text NOT NULL DEFAULT '',
    created_at    timestamptz NOT NULL DEFAULT now(),
    finished_at   timestamptz
);
CREATE INDEX deliveries_due ON deliveries (subscription, next_try_at) WHERE state = 'waiting';
CREATE INDEX deliveries_of_tenant ON deliveries (tenant, created_at, id);
