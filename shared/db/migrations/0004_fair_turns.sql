-- When a tenant was last given a place of the installation: whoever has waited longest for a turn is next. Written by scheduler.
ALTER TABLE tenants ADD COLUMN served_at timestamptz;
