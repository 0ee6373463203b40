-- Are both sides the same history? Run on the new side while nobody writes, when `crossfade wait` has come back:
--   psql "$NEW_URL" -v old="host 'old.example', port '5432', dbname 'app'" -v login="user 'app'" -f check.sql
-- No row is the answer that is wanted. Made without Crossfade: the old side's rows are read over postgres_fdw, taken through
-- the mapping by joins, and held against the new side's rows by the text of every value. It leaves nothing behind.
BEGIN;
CREATE EXTENSION IF NOT EXISTS postgres_fdw;
CREATE SERVER cycle_reports_old FOREIGN DATA WRAPPER postgres_fdw OPTIONS (:old, fetch_size '10000');
CREATE USER MAPPING FOR CURRENT_USER SERVER cycle_reports_old OPTIONS (:login);
CREATE SCHEMA old_side;
IMPORT FOREIGN SCHEMA public FROM SERVER cycle_reports_old INTO old_side;
CREATE SCHEMA old_crossfade;
IMPORT FOREIGN SCHEMA crossfade LIMIT TO (reverse_keys) FROM SERVER cycle_reports_old INTO old_crossfade;

-- Which old key is which new one. After a switch rows are born on the new side: their pairs stand on the old one; and a
-- surrogate stands for what it stands beside.
CREATE TEMP TABLE pairs ON COMMIT DROP AS SELECT table_name, old_id, new_id::text FROM uuid_migration_mapping;
DO $$ BEGIN
    IF to_regclass('old_crossfade.reverse_keys') IS NOT NULL THEN
        INSERT INTO pairs SELECT table_name, old_id::text, new_id FROM old_crossfade.reverse_keys EXCEPT SELECT * FROM pairs;
        INSERT INTO pairs SELECT 'public.cycle_reports', format('(%s,%s)', c.old_id, r.old_id), id::text FROM cycle_reports
            JOIN pairs c ON c.table_name = 'public.test_cycles' AND c.new_id = cycle_id::text
            JOIN pairs r ON r.table_name = 'public.reports' AND r.new_id = report_id::text
            EXCEPT SELECT * FROM pairs;
    END IF;
END $$;
CREATE INDEX ON pairs (table_name, old_id);
CREATE INDEX ON pairs (table_name, new_id);
ANALYZE pairs;

-- Every column that holds a key on the new side: what it is made of on the old side, and whose key it is.
CREATE TEMP TABLE keys (tab text, col text, was text, of text, own boolean) ON COMMIT DROP;
INSERT INTO keys SELECT tab, col, col, of, tab = of AND col = own FROM (VALUES
    ('lookup_values', 'lookup_id', 'lookup_values', 'lookup_id'), ('lobs', 'lob_id', 'lobs', 'lob_id'), ('roles', 'role_id', 'roles', 'role_id'),
    ('permissions', 'permission_id', 'permissions', 'permission_id'),
    ('role_permissions', 'role_id', 'roles', ''), ('role_permissions', 'permission_id', 'permissions', ''),
    ('users', 'user_id', 'users', 'user_id'), ('users', 'lob_id', 'lobs', ''), ('users', 'manager_id', 'users', ''),
    ('user_roles', 'user_id', 'users', ''), ('user_roles', 'role_id', 'roles', ''), ('user_roles', 'granted_by', 'users', ''),
    ('test_cycles', 'cycle_id', 'test_cycles', 'cycle_id'), ('test_cycles', 'manager_id', 'users', ''),
    ('reports', 'report_id', 'reports', 'report_id'), ('reports', 'lob_id', 'lobs', ''), ('reports', 'owner_id', 'users', ''),
    ('cycle_reports', 'cycle_id', 'test_cycles', ''), ('cycle_reports', 'report_id', 'reports', ''), ('cycle_reports', 'tester_id', 'users', ''),
    ('workflow_phases', 'phase_id', 'workflow_phases', 'phase_id'), ('workflow_phases', 'cycle_id', 'test_cycles', ''),
    ('workflow_phases', 'report_id', 'reports', ''),
    ('rfis', 'rfi_id', 'rfis', 'rfi_id'), ('rfis', 'phase_id', 'workflow_phases', ''), ('rfis', 'asked_by', 'users', ''),
    ('cycle_report_planning_attributes', 'id', 'cycle_report_planning_attributes', 'id'),
    ('cycle_report_planning_attributes', 'phase_id', 'workflow_phases', ''),
    ('cycle_report_scoping_attributes', 'decided_by', 'users', ''),
    ('data_profiles', 'profile_id', 'data_profiles', 'profile_id'), ('data_profiles', 'attribute_id', 'cycle_report_planning_attributes', ''),
    ('samples', 'sample_id', 'samples', 'sample_id'), ('samples', 'attribute_id', 'cycle_report_planning_attributes', ''),
    ('test_executions', 'execution_id', 'test_executions', 'execution_id'), ('test_executions', 'sample_id', 'samples', ''),
    ('test_executions', 'executed_by', 'users', ''),
    ('observations', 'observation_id', 'observations', 'observation_id'), ('observations', 'execution_id', 'test_executions', ''),
    ('observations', 'raised_by', 'users', ''),
    ('audit_logs', 'audit_id', 'audit_logs', 'audit_id'), ('audit_logs', 'actor_id', 'users', ''),
    ('llm_audit_logs', 'log_id', 'llm_audit_logs', 'log_id'), ('llm_audit_logs', 'actor_id', 'users', '')) k (tab, col, of, own);
INSERT INTO keys VALUES
    ('cycle_reports', 'id', 'cycle_id, report_id', 'cycle_reports', true), ('workflow_phases', 'cycle_reports_id', 'cycle_id, report_id', 'cycle_reports', false),
    ('cycle_report_scoping_attributes', 'id', 'planning_attribute_id', 'cycle_report_planning_attributes', false);

CREATE FUNCTION pg_temp.problems() RETURNS TABLE (tab text, problem text, rows bigint) LANGUAGE plpgsql AS $$
DECLARE
    t text;
    wanted text;
    joins text;
    found text;
    k keys;
BEGIN
    FOR t IN SELECT relname FROM pg_class WHERE relnamespace = 'old_side'::regnamespace ORDER BY 1 LOOP
        tab := t;
        -- The old side's rows under their new keys, column by column as the new side has them.
        SELECT string_agg(CASE WHEN key.col IS NULL THEN format('o.%I::text', a.attname) ELSE format('m%s.new_id', a.attnum) END, ', ' ORDER BY a.attnum),
               string_agg(format('%I::text', a.attname), ', ' ORDER BY a.attnum),
               string_agg(format(' LEFT JOIN pairs m%1$s ON m%1$s.table_name = %2$L AND m%1$s.old_id = %3$s', a.attnum,
                   'public.' || key.of, CASE WHEN key.was ~ ',' THEN format('(SELECT format(''(%%s,%%s)'', %s))', key.was) ELSE format('o.%I::text', key.was) END), '')
                   FILTER (WHERE key.col IS NOT NULL)
        INTO wanted, found, joins
        FROM pg_attribute a LEFT JOIN keys key ON key.tab = t AND key.col = a.attname
        WHERE a.attrelid = format('public.%I', t)::regclass AND a.attnum > 0 AND NOT a.attisdropped;
        wanted := format('SELECT %s FROM old_side.%I o%s', wanted, t, joins);
        found := format('SELECT %s FROM public.%I', found, t);
        EXECUTE format('SELECT count(*) FROM (%s EXCEPT ALL %s) d', wanted, found) INTO rows;
        problem := 'rows that the old side has and the new one has not, under the keys that the mapping says';
        IF rows > 0 THEN RETURN NEXT; END IF;
        EXECUTE format('SELECT count(*) FROM (%s EXCEPT ALL %s) d', found, wanted) INTO rows;
        problem := 'rows that the new side has and the old one has not';
        IF rows > 0 THEN RETURN NEXT; END IF;
    END LOOP;
    FOR k IN SELECT * FROM keys LOOP
        tab := k.tab;
        EXECUTE format('SELECT count(*) FROM public.%I c WHERE c.%I IS NOT NULL AND NOT EXISTS '
                       '(SELECT FROM pairs m WHERE m.table_name = %L AND m.new_id = c.%2$I::text)',
                       k.tab, k.col, 'public.' || k.of) INTO rows;
        problem := format('keys of %s in %s that the mapping does not know', k.of, k.col);
        IF rows > 0 THEN RETURN NEXT; END IF;
        CONTINUE WHEN k.own;
        EXECUTE format('SELECT count(*) FROM public.%I c WHERE c.%I IS NOT NULL AND NOT EXISTS (SELECT FROM public.%I p WHERE p.%I = c.%2$I)',
                       k.tab, k.col, k.of, (SELECT p.col FROM keys p WHERE p.tab = k.of AND p.own)) INTO rows;
        problem := format('orphans: %s refers to rows of %s that are not there', k.col, k.of);
        IF rows > 0 THEN RETURN NEXT; END IF;
    END LOOP;
    -- The references themselves: those that the old side declares, and not one less.
    SELECT 26 - count(*) INTO rows FROM pg_constraint WHERE contype = 'f' AND connamespace = 'public'::regnamespace AND convalidated;
    tab := 'pg_constraint'; problem := 'references that are declared and valid on the old side and not on the new one';
    IF rows <> 0 THEN RETURN NEXT; END IF;
END $$;
SELECT * FROM pg_temp.problems();
ROLLBACK;
