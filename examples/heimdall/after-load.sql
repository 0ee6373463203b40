-- On the new graph, once it is loaded: expressions over properties that change are not carried over, `crossfade plan` names them.
-- From here on the server refuses a second node with one key; the change that brings it goes to quarantine.
CREATE UNIQUE INDEX row_v2 ON intel_v2."Row" ((properties ->> 'canonical_key'));
CREATE UNIQUE INDEX field_value_v2 ON intel_v2."FieldValue" ((properties ->> 'canonical_key'));
ANALYZE intel_v2."Row", intel_v2."FieldValue", intel_v2."HAS_FIELD", intel_v2."SIGHTING";
