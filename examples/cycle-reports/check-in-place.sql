-- Do the old columns and the new ones say the same, in every row? Before the switch, after it and after a failback, in a moment
-- in which nobody writes. No row is the answer that is wanted. Made without Crossfade: by joins, and by the mapping.
BEGIN;
-- Every old column that holds a key, the new one that stands beside it until the switch, its name after it, and whose key it is.
CREATE TEMP TABLE keys (tab text, old text, shadow text, new text, of text, own boolean DEFAULT false) ON COMMIT DROP;
INSERT INTO keys SELECT tab, old, shadow, old, of, tab = of AND shadow = 'uuid_id' FROM (VALUES
    ('lookup_values', 'lookup_id', 'uuid_id', 'lookup_values'), ('lobs', 'lob_id', 'uuid_id', 'lobs'), ('roles', 'role_id', 'uuid_id', 'roles'),
    ('permissions', 'permission_id', 'uuid_id', 'permissions'),
    ('role_permissions', 'role_id', 'role_uuid', 'roles'), ('role_permissions', 'permission_id', 'permission_uuid', 'permissions'),
    ('users', 'user_id', 'uuid_id', 'users'), ('users', 'lob_id', 'lob_uuid', 'lobs'), ('users', 'manager_id', 'manager_uuid', 'users'),
    ('user_roles', 'user_id', 'user_uuid', 'users'), ('user_roles', 'role_id', 'role_uuid', 'roles'),
    ('user_roles', 'granted_by', 'granted_by_uuid', 'users'),
    ('test_cycles', 'cycle_id', 'uuid_id', 'test_cycles'), ('test_cycles', 'manager_id', 'manager_uuid', 'users'),
    ('reports', 'report_id', 'uuid_id', 'reports'), ('reports', 'lob_id', 'lob_uuid', 'lobs'), ('reports', 'owner_id', 'owner_uuid', 'users'),
    ('cycle_reports', 'cycle_id', 'cycle_uuid', 'test_cycles'), ('cycle_reports', 'report_id', 'report_uuid', 'reports'),
    ('cycle_reports', 'tester_id', 'tester_uuid', 'users'),
    ('workflow_phases', 'phase_id', 'uuid_id', 'workflow_phases'), ('workflow_phases', 'cycle_id', 'cycle_uuid', 'test_cycles'),
    ('workflow_phases', 'report_id', 'report_uuid', 'reports'),
    ('rfis', 'rfi_id', 'uuid_id', 'rfis'), ('rfis', 'phase_id', 'phase_uuid', 'workflow_phases'), ('rfis', 'asked_by', 'asked_by_uuid', 'users'),
    ('cycle_report_planning_attributes', 'id', 'uuid_id', 'cycle_report_planning_attributes'),
    ('cycle_report_planning_attributes', 'phase_id', 'phase_uuid', 'workflow_phases'),
    ('cycle_report_scoping_attributes', 'decided_by', 'decided_by_uuid', 'users'),
    ('data_profiles', 'profile_id', 'uuid_id', 'data_profiles'), ('data_profiles', 'attribute_id', 'attribute_uuid', 'cycle_report_planning_attributes'),
    ('samples', 'sample_id', 'uuid_id', 'samples'), ('samples', 'attribute_id', 'attribute_uuid', 'cycle_report_planning_attributes'),
    ('test_executions', 'execution_id', 'uuid_id', 'test_executions'), ('test_executions', 'sample_id', 'sample_uuid', 'samples'),
    ('test_executions', 'executed_by', 'executed_by_uuid', 'users'),
    ('observations', 'observation_id', 'uuid_id', 'observations'), ('observations', 'execution_id', 'execution_uuid', 'test_executions'),
    ('observations', 'raised_by', 'raised_by_uuid', 'users'),
    ('audit_logs', 'audit_id', 'uuid_id', 'audit_logs'), ('audit_logs', 'actor_id', 'actor_uuid', 'users'),
    ('llm_audit_logs', 'log_id', 'uuid_id', 'llm_audit_logs'), ('llm_audit_logs', 'actor_id', 'actor_uuid', 'users')) k (tab, old, shadow, of);
-- A scoping row takes the key of its planning row.
INSERT INTO keys VALUES ('cycle_report_scoping_attributes', 'planning_attribute_id', 'id', 'id', 'cycle_report_planning_attributes');

CREATE FUNCTION pg_temp.problems() RETURNS TABLE (tab text, problem text, rows bigint) LANGUAGE plpgsql AS $$
DECLARE
    -- After the switch the old columns are called legacy_…, and the new ones have their names.
    switched boolean := EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'users'::regclass AND attname = 'legacy_user_id');
    legacy text := CASE WHEN switched THEN 'legacy_' ELSE '' END;
    k keys;
BEGIN
    FOR k IN SELECT c.tab, legacy || c.old, c.shadow, CASE WHEN switched THEN c.new ELSE c.shadow END, c.of, c.own FROM keys c LOOP
        tab := k.tab;
        IF k.own THEN
            problem := format('rows whose %s the mapping says otherwise', k.new);
            EXECUTE format('SELECT count(*) FROM %I t JOIN uuid_migration_mapping m ON m.table_name = %L AND m.old_id = t.%I::text '
                           'WHERE m.new_id IS DISTINCT FROM t.%I', k.tab, 'public.' || k.tab, k.old, k.new) INTO rows;
            IF rows > 0 THEN RETURN NEXT; END IF;
            problem := format('rows without %s, or that the mapping does not know', k.new);
            EXECUTE format('SELECT count(*) FROM %I t WHERE t.%I IS NULL OR t.%I IS NULL OR NOT %L AND NOT EXISTS '
                           '(SELECT FROM uuid_migration_mapping m WHERE m.table_name = %L AND m.old_id = t.%3$I::text)',
                           k.tab, k.new, k.old, switched, 'public.' || k.tab) INTO rows;
        ELSE
            problem := format('rows whose %s and %s refer to different rows of %s, or only one of them does', k.old, k.new, k.of);
            EXECUTE format('SELECT count(*) FROM %I t LEFT JOIN %I p ON p.%I = t.%I LEFT JOIN %2$I q ON q.%I = t.%I '
                           'WHERE p.ctid IS DISTINCT FROM q.ctid OR (p.ctid IS NULL) <> (t.%4$I IS NULL) OR (q.ctid IS NULL) <> (t.%6$I IS NULL)',
                           k.tab, k.of, (SELECT legacy || c.old FROM keys c WHERE c.tab = k.of AND c.own), k.old,
                           (SELECT CASE WHEN switched THEN c.new ELSE c.shadow END FROM keys c WHERE c.tab = k.of AND c.own), k.new) INTO rows;
        END IF;
        IF rows > 0 THEN RETURN NEXT; END IF;
    END LOOP;
    tab := 'workflow_phases'; problem := 'rows whose cycle_reports_id is not that of their cycle and report';
    EXECUTE format('SELECT count(*) FROM workflow_phases w LEFT JOIN cycle_reports c ON c.%1$I = w.%1$I AND c.%2$I = w.%2$I '
                   'WHERE w.cycle_reports_id IS DISTINCT FROM c.id OR c.id IS NULL', legacy || 'cycle_id', legacy || 'report_id') INTO rows;
    IF rows > 0 THEN RETURN NEXT; END IF;
    -- Both shapes, by the views: the same rows, with numbers here and UUIDs there.
    FOR tab IN SELECT DISTINCT c.tab FROM keys c LOOP
        problem := 'rows that one of the views shows and the other does not';
        EXECUTE format('SELECT abs((SELECT count(*) FROM app_v1.%1$I) - (SELECT count(*) FROM app_v2.%1$I))', tab) INTO rows;
        IF rows > 0 THEN RETURN NEXT; END IF;
    END LOOP;
    tab := 'pg_constraint'; problem := 'references that are declared and not proven, or missing';
    SELECT abs(count(*) FILTER (WHERE convalidated) - CASE WHEN switched THEN 28 ELSE 27 END) + count(*) FILTER (WHERE NOT convalidated) INTO rows
    FROM pg_constraint WHERE contype = 'f' AND connamespace = 'public'::regnamespace;
    IF rows > 0 THEN RETURN NEXT; END IF;
END $$;
SELECT * FROM pg_temp.problems();
ROLLBACK;
