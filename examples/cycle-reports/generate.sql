-- Fills the tables with about so many rows in all, and the same ones for the same numbers:
--   psql -v rows=100000 -v seed=1 -f generate.sql
INSERT INTO configuration SELECT 'setting.' || n, jsonb_build_object('value', hashint8extended(n, :seed)), '2024-01-01'
FROM generate_series(1, 20) n;
INSERT INTO lookup_values (category, code, label) SELECT 'category ' || n % 5, 'c' || n, 'label ' || n
FROM generate_series(1, 50) n;
INSERT INTO lobs (name, created_at) SELECT 'line of business ' || n, '2019-01-01' FROM generate_series(1, 12) n;
INSERT INTO roles (name) VALUES ('tester'), ('test manager'), ('report owner'), ('data provider'), ('auditor'), ('admin');
INSERT INTO permissions (resource, action) SELECT r, a
FROM unnest(ARRAY['cycle', 'report', 'phase', 'sample', 'observation', 'user']) r, unnest(ARRAY['read', 'write', 'approve', 'delete']) a;
INSERT INTO role_permissions SELECT r, p FROM generate_series(1, 6) r, generate_series(1, 24) p WHERE (r * 7 + p) % 3 = 0;

-- People: a manager stands before those whom he manages; one of a hundred has left.
INSERT INTO users (email, full_name, lob_id, manager_id, is_active, settings, created_at, deleted_at)
SELECT 'user' || n || '@example.org', 'User ' || n, CASE WHEN n % 9 > 0 THEN 1 + n % 12 END,
       CASE WHEN n > 10 THEN 1 + (h & 1073741823) % (n / 10) END, n % 100 > 0,
       CASE WHEN n % 3 = 0 THEN jsonb_build_object('theme', 'dark', 'page', h & 63) END,
       '2020-01-01'::timestamptz + n * interval '11 minutes', CASE WHEN n % 100 = 0 THEN '2024-05-01'::timestamptz END
FROM (SELECT n, hashint8extended(n, :seed) AS h FROM generate_series(1::bigint, 40 + :rows / 50) n) drawn;
INSERT INTO user_roles SELECT user_id, 1 + user_id % 6, manager_id, created_at + interval '1 day' FROM users;

-- The core: each report is in four cycles.
INSERT INTO test_cycles (name, starts_on, ends_on, manager_id)
SELECT 'cycle ' || n, '2018-01-01'::date + (n * 91)::int, '2018-01-01'::date + (n * 91 + 90)::int, 1 + n % 40
FROM generate_series(1, 6 + :rows / 20000) n;
INSERT INTO reports (name, regulation, lob_id, owner_id)
SELECT 'report ' || n, CASE n % 4 WHEN 0 THEN NULL WHEN 1 THEN 'FR Y-14M' WHEN 2 THEN 'FR 2052a' ELSE 'SOX' END, 1 + n % 12, 1 + n % 40
FROM generate_series(1, 5 + :rows / 1000) n;
INSERT INTO cycle_reports
SELECT cycle_id, report_id, 1 + (hashint8extended(report_id, :seed + cycle_id) & 1023) % 40,
       (ARRAY['planned', 'running', 'closed'])[1 + (cycle_id + report_id) % 3], '2024-01-01'
FROM test_cycles, reports
WHERE (cycle_id + report_id) % (SELECT count(*) FROM test_cycles) < 4;
INSERT INTO workflow_phases (cycle_id, report_id, name, status, started_at)
SELECT cycle_id, report_id, name, (ARRAY['open', 'running', 'done'])[1 + (hashint8extended(report_id, place) & 1023) % 3]::phase_status,
       CASE WHEN place < 4 THEN '2024-01-01'::timestamptz + place * interval '1 week' END
FROM cycle_reports, unnest(ARRAY['planning', 'scoping', 'testing', 'observations']) WITH ORDINALITY p (name, place)
ORDER BY cycle_id, report_id, place;
INSERT INTO rfis (phase_id, asked_by, question, answer)
SELECT phase_id, 1 + phase_id % 40, 'What is line ' || phase_id || '?', CASE WHEN phase_id % 4 > 0 THEN 'It is ' || md5(phase_id::text) END
FROM workflow_phases WHERE phase_id % 2 = 0;

-- Attributes, and what hangs on them.
INSERT INTO cycle_report_planning_attributes (phase_id, name, data_type, is_critical, risk_score)
SELECT 1 + n % (SELECT count(*) FROM workflow_phases), 'attribute ' || n, (ARRAY['text', 'number', 'date'])[1 + n % 3], n % 7 = 0,
       CASE WHEN n % 5 > 0 THEN (h & 9999) / 100.0 END
FROM (SELECT n, hashint8extended(n, :seed + 1) AS h FROM generate_series(1, 50 + :rows / 10) n) drawn;
INSERT INTO cycle_report_scoping_attributes (planning_attribute_id, in_scope, reason, decided_by)
SELECT id, id % 3 > 0, CASE WHEN id % 3 = 0 THEN 'not material' END, 1 + id % 40
FROM cycle_report_planning_attributes WHERE id % 10 > 0
ORDER BY hashint8extended(id, :seed + 2);    -- so that the two keys of a row have nothing in common
INSERT INTO data_profiles (attribute_id, statistics, made_at)
SELECT 2 * n, jsonb_build_object('nulls', n % 17, 'distinct', n), '2024-02-01'::timestamptz + n * interval '1 second'
FROM generate_series(1, :rows / 20) n;
INSERT INTO samples (attribute_id, line_key, payload)
SELECT 1 + (hashint8extended(n, :seed + 3) & 1073741823) % (50 + :rows / 10), 'line ' || n, decode(md5(n::text), 'hex')
FROM generate_series(1::bigint, 50 + :rows / 10) n;
INSERT INTO test_executions (sample_id, executed_by, result, confidence, executed_at)
SELECT 1 + n % (50 + :rows / 10), CASE WHEN n % 11 > 0 THEN 1 + n % 40 END, (ARRAY['pass', 'fail', NULL])[1 + n % 3], (n % 1000) / 999.0,
       '2024-03-01'::timestamptz + n * interval '1 second'
FROM generate_series(1, 50 + :rows * 3 / 20) n;
INSERT INTO observations (execution_id, raised_by, severity, text)
SELECT 3 * n, 1 + n % 40, 1 + n % 5, 'observation ' || n FROM generate_series(1, :rows / 20) n;

-- Logs.
INSERT INTO audit_logs (actor_id, action, detail, at)
SELECT CASE WHEN n % 13 > 0 THEN 1 + (h & 1073741823) % (40 + :rows / 50) END, (ARRAY['login', 'read', 'write', 'approve'])[1 + n % 4],
       CASE WHEN n % 4 > 1 THEN jsonb_build_object('request', md5(n::text)) END, '2024-01-01'::timestamptz + n * interval '1.003 seconds'
FROM (SELECT n, hashint8extended(n, :seed + 4) AS h FROM generate_series(1::bigint, :rows / 4) n) drawn;
INSERT INTO llm_audit_logs (actor_id, model, tokens, cost, at)
SELECT CASE WHEN n % 5 > 0 THEN 1 + n % 40 END, 'model ' || n % 3, n % 4000, (n % 4000) * 0.000015, '2024-01-01'::timestamptz + n * interval '3.7 seconds'
FROM generate_series(1, :rows / 10) n;
ANALYZE;
