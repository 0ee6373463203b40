-- Once, before the migration in place. Whoever asked a model is a user: the catalog does not know it, and after the switch the
-- database itself finds the old number of every reference by it. Writers wait for the moment that the first line takes.
ALTER TABLE llm_audit_logs ADD FOREIGN KEY (actor_id) REFERENCES users ON DELETE SET NULL NOT VALID;
ALTER TABLE llm_audit_logs VALIDATE CONSTRAINT llm_audit_logs_actor_id_fkey;
