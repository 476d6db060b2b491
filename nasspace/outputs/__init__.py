"""What leaves the house: figures, the report of a study, and export folders that run without nasspace."""
