-- The key of version 2 in PostgreSQL's own words, from docs/key-vectors.md; vectors.json pins it. The application's queries
-- make it as well, so here it is a second implementation: what the migration wrote is held against it.
CREATE SCHEMA IF NOT EXISTS canonical;
CREATE OR REPLACE FUNCTION canonical.item(text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS
$$ SELECT coalesce('t' || octet_length(convert_to($1, 'UTF8')) || ':' || $1 || ',', 'z0:,') $$;
CREATE OR REPLACE FUNCTION canonical.hash(text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS
$$ SELECT 'sha256:' || encode(sha256(convert_to('key:v2;' || $1, 'UTF8')), 'hex') $$;
CREATE OR REPLACE FUNCTION canonical.folded(text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS
$$ SELECT btrim(regexp_replace(lower(normalize($1, NFKC) COLLATE "und-x-icu"), '[[:space:]]+', ' ', 'g'), ' ') $$;
CREATE OR REPLACE FUNCTION canonical.trimmed(text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS
$$ SELECT btrim($1, E' \t\n\r') $$;
CREATE OR REPLACE FUNCTION canonical.row_key(properties jsonb) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS
$$ SELECT canonical.hash(canonical.item(canonical.trimmed($1 ->> 'row_key')) || canonical.item(canonical.trimmed($1 ->> 'dump'))) $$;
CREATE OR REPLACE FUNCTION canonical.field_value_key(properties jsonb) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS
$$ SELECT canonical.hash(canonical.item(canonical.folded($1 ->> 'value')) || canonical.item(canonical.trimmed($1 ->> 'field'))
       || canonical.item(canonical.trimmed($1 ->> 'row_key')) || canonical.item(canonical.trimmed($1 ->> 'dump'))) $$;
