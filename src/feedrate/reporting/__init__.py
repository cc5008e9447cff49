"""Pictures, tables and pages made from what was measured: of a run, a sweep and a search."""
