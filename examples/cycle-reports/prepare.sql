-- On the old side, once. A scoping row loses its own key, so the stream must tell the planning row's key of a row that goes.
ALTER TABLE cycle_report_scoping_attributes
    REPLICA IDENTITY USING INDEX cycle_report_scoping_attributes_planning_attribute_id_key;
