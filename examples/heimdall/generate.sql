-- Fills the graph. Any size, and the same graph for the same numbers:
--   psql -v rows=100000 -v seed=1 -f generate.sql
-- Each row of a dump has three fields, so there are three nodes and three edges more for each; one value of fifty is seen
-- in another dump as well. Values come as people write them: with white space, capitals and signs that nobody meant.
INSERT INTO intel."Row" (properties)
SELECT jsonb_build_object('dump', 'breach_' || 2015 + n % 10, 'row_key', n::text)
FROM generate_series(1, :rows) n;

INSERT INTO intel."FieldValue" (properties)
SELECT jsonb_build_object('dump', 'breach_' || 2015 + n % 10, 'row_key', n::text, 'field', field, 'value', CASE field
           WHEN 'email' THEN CASE h & 3 WHEN 0 THEN ' ' ELSE '' END || CASE h & 4 WHEN 0 THEN 'User' ELSE 'user' END || who || '@Example.com'
           WHEN 'phone' THEN CASE h & 3 WHEN 0 THEN '+49 30 ' || who WHEN 1 THEN '0049-30-' || who ELSE '030/' || who END
           ELSE 'Zoë ' || who END)
       || CASE WHEN n % 7 = 0 THEN jsonb_build_object('confidence', (h & 127) / 127.0, 'note', repeat('long ', (h & 63)::int)) ELSE '{}' END
FROM (SELECT n, field, hashint8extended(n, :seed + place) AS h, CASE WHEN n % 50 = 0 THEN n / 2 ELSE n END AS who
      FROM generate_series(1::bigint, :rows) n, unnest(ARRAY['email', 'phone', 'name']) WITH ORDINALITY f (field, place)) drawn
ORDER BY n, field;

INSERT INTO intel."HAS_FIELD" (start_id, end_id, properties)
SELECT r.id, v.id, jsonb_build_object('field', v.properties ->> 'field')
FROM intel."Row" r JOIN intel."FieldValue" v
  ON v.properties ->> 'row_key' = r.properties ->> 'row_key' AND v.properties ->> 'dump' = r.properties ->> 'dump'
ORDER BY v.id;
INSERT INTO intel."SIGHTING" (start_id, end_id)
SELECT a.id, b.id FROM intel."FieldValue" a JOIN intel."FieldValue" b ON a.properties ->> 'value' = b.properties ->> 'value' AND a.id < b.id
ORDER BY a.id, b.id;
ANALYZE;
