-- ---------------------------------------------------------------- status_watcher

-- The parts into which the work of the replicas is divided: a container belongs to the share that is the last digit of its name.
-- A version that does not know the table does all the work in each replica, which is harmless.
CREATE TABLE watcher_shares (
    share   text PRIMARY KEY,
    holder  text NOT NULL DEFAULT ''         -- the process that does the work, while its lease "status_watcher:<holder>" lasts
);
INSERT INTO watcher_shares (share) SELECT to_hex(digit) FROM generate_series(0, 15) digit;
