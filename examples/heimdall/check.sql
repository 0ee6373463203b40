-- Are both graphs the same but for the keys? Run while nobody writes, when `crossfade wait` has come back. No row is the answer
-- that is wanted. Made without Crossfade: the keys by v2.sql, the rest by comparing.
SELECT 'Row' AS label, 'differs' AS problem, coalesce(o.id, n.id) AS id
FROM intel."Row" o FULL JOIN intel_v2."Row" n USING (id)
WHERE (o.properties || jsonb_build_object('canonical_key_version', 'v2', 'canonical_key', canonical.row_key(o.properties)))::text IS DISTINCT FROM n.properties::text
UNION ALL
SELECT 'FieldValue', 'differs', coalesce(o.id, n.id)
FROM intel."FieldValue" o FULL JOIN intel_v2."FieldValue" n USING (id)
WHERE (o.properties || jsonb_build_object('canonical_key_version', 'v2', 'canonical_key', canonical.field_value_key(o.properties)))::text
      IS DISTINCT FROM n.properties::text
UNION ALL
SELECT 'HAS_FIELD', 'differs', coalesce(o.id, n.id) FROM intel."HAS_FIELD" o FULL JOIN intel_v2."HAS_FIELD" n USING (id)
WHERE (o.start_id, o.end_id, o.properties::text) IS DISTINCT FROM (n.start_id, n.end_id, n.properties::text)
UNION ALL
SELECT 'SIGHTING', 'differs', coalesce(o.id, n.id) FROM intel."SIGHTING" o FULL JOIN intel_v2."SIGHTING" n USING (id)
WHERE (o.start_id, o.end_id, o.properties::text) IS DISTINCT FROM (n.start_id, n.end_id, n.properties::text)
UNION ALL
SELECT label, 'has an edge without an end', id
FROM (SELECT 'HAS_FIELD' AS label, * FROM intel_v2."HAS_FIELD" UNION ALL SELECT 'SIGHTING', * FROM intel_v2."SIGHTING") e
WHERE NOT EXISTS (SELECT FROM intel_v2."Row" r WHERE r.id = start_id UNION ALL SELECT FROM intel_v2."FieldValue" v WHERE v.id = start_id)
   OR NOT EXISTS (SELECT FROM intel_v2."FieldValue" v WHERE v.id = end_id)
ORDER BY 1, 2, 3;
