"""Pages with plots and tables: the report of a study, and a full training."""
