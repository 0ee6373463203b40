-- Fills the two tables. Any size, and the same rows for the same numbers:
--   psql -v rows=1682827 -v seed=1 -f generate.sql
-- One address stands for about seventeen sessions; nineteen of twenty are in the inventory.
INSERT INTO ip_inventory
SELECT '11.0.0.0'::inet + n,
       1000 + hashint8extended(n, :seed) & 65535,
       (ARRAY['CN', 'US', 'NL', 'DE', 'BR', 'RU', 'VN', 'IN', 'XX', '--', ''])[1 + (hashint8extended(n, :seed + 1) & 1023) % 11],
       (ARRAY['datacenter', 'residential', 'mobile', 'tor'])[1 + (hashint8extended(n, :seed + 2) & 3)],
       '2023-01-01'::timestamptz + n % 100000 * interval '1 minute',
       '2024-01-01'::timestamptz + n % 100000 * interval '1 minute',
       '2024-02-01'::timestamptz + n % 100000 * interval '1 minute'
FROM generate_series(1::bigint, :rows / 17 + 1) n
WHERE (hashint8extended(n, :seed + 3) & 1048575) % 20 <> 0;

INSERT INTO session_summaries
SELECT md5(:seed || '/' || n),
       '2024-01-01'::timestamptz + n * interval '7 seconds',
       '2024-01-01'::timestamptz + n * interval '7 seconds' + (h & 1023) * interval '1 second',
       (h & 255)::int, (h >> 8 & 63)::int, (h >> 14 & 7)::int, (h >> 17 & 127)::int,
       (h & 8191) / 100.0,
       -- One session of fifty has no document, or none that names an address.
       CASE (h >> 24 & 1023) % 100
           WHEN 0 THEN NULL
           WHEN 1 THEN '{"sensor": "sea-2"}'::jsonb
           ELSE jsonb_build_object('source_ip', host('11.0.0.0'::inet + 1 + (h >> 20 & 1073741823) % (:rows / 17 + 1)),
                                   'sensor', 'sea-' || (h & 3), 'ports', jsonb_build_array(22, 23))
       END,
       NULL, NULL, NULL, NULL, NULL
FROM (SELECT n, hashint8extended(n, :seed + 4) AS h FROM generate_series(1::bigint, :rows) n) drawn;

ANALYZE ip_inventory;
ANALYZE session_summaries;
