-- Before anything is written, on one snapshot: each row that comes back is a reason not to begin. A collision names both rows.
BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
WITH keys AS (
    SELECT 'Row' AS label, id, canonical.row_key(properties) AS key FROM intel."Row"
    UNION ALL SELECT 'FieldValue', id, canonical.field_value_key(properties) FROM intel."FieldValue"
), ends AS (
    SELECT 'HAS_FIELD' AS label, id, start_id, end_id FROM intel."HAS_FIELD"
    UNION ALL SELECT 'SIGHTING', id, start_id, end_id FROM intel."SIGHTING"
)
SELECT 'collision' AS problem, label, array_agg(id ORDER BY id) AS rows, key AS detail FROM keys GROUP BY label, key HAVING count(*) > 1
UNION ALL
SELECT 'an edge without an end', label, ARRAY[id], format('%s -> %s', start_id, end_id) FROM ends
WHERE NOT EXISTS (SELECT FROM intel."Row" WHERE id = start_id UNION ALL SELECT FROM intel."FieldValue" WHERE id = start_id)
   OR NOT EXISTS (SELECT FROM intel."FieldValue" WHERE id = end_id)
ORDER BY 1, 2, 3;
COMMIT;
