-- Finished runs by how they ended: a page of those that failed does not read all that did not.
CREATE INDEX runs_finished ON runs (tenant, state, number DESC) WHERE finished_at IS NOT NULL;

-- Who did what to one thing.
CREATE INDEX audit_of_subject ON audit (subject, id);
