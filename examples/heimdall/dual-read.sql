-- Readers ask one function: by the new key first, then by the raw one, and get one answer. What either of them alone would
-- have said is counted, in a table that readers only add to.
CREATE TABLE canonical.reads (found_by text NOT NULL, differs boolean NOT NULL, at timestamptz NOT NULL DEFAULT now());
CREATE FUNCTION canonical.find_field_value(value text, field text, row_key text, dump text)
RETURNS TABLE (id bigint, properties jsonb) LANGUAGE plpgsql AS $$
DECLARE
    raw jsonb := jsonb_build_object('value', value, 'field', field, 'row_key', row_key, 'dump', dump);
    by_v2 bigint[];
    by_v1 bigint[];
BEGIN
    SELECT array_agg(v.id ORDER BY v.id) INTO by_v2 FROM intel_v2."FieldValue" v
    WHERE v.properties ->> 'canonical_key' = canonical.field_value_key(raw);
    SELECT array_agg(v.id ORDER BY v.id) INTO by_v1 FROM intel."FieldValue" v
    WHERE v.properties ->> 'value' = raw ->> 'value' AND v.properties @> raw;
    INSERT INTO canonical.reads VALUES (CASE WHEN by_v2 IS NOT NULL THEN 'v2' WHEN by_v1 IS NOT NULL THEN 'v1' ELSE 'nothing' END,
                                        by_v2 IS DISTINCT FROM by_v1);
    RETURN QUERY SELECT v.id, v.properties FROM intel_v2."FieldValue" v WHERE v.id = ANY (by_v2)
        UNION ALL SELECT v.id, v.properties FROM intel."FieldValue" v WHERE by_v2 IS NULL AND v.id = ANY (by_v1);
END $$;
