-- On the new side, before the switch: the old side counted its keys, here a row that is born gets a key by default. (In the
-- application's own words, with uuidv7() on PostgreSQL 18, or not at all where the application makes its keys itself.)
DO $$
DECLARE
    key record;
BEGIN
    FOR key IN
        SELECT c.conrelid::regclass AS tab, a.attname AS col FROM pg_constraint c
        JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = c.conkey[1]
        WHERE c.contype = 'p' AND cardinality(c.conkey) = 1 AND a.atttypid = 'uuid'::regtype AND c.connamespace = 'public'::regnamespace
          -- Its key is the planning row's, never one of its own.
          AND c.conrelid <> 'cycle_report_scoping_attributes'::regclass
    LOOP
        EXECUTE format('ALTER TABLE %s ALTER %I SET DEFAULT gen_random_uuid()', key.tab, key.col);
    END LOOP;
END $$;
