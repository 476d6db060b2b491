"""Records of a search: recipe, objectives, trials, tables, and storage."""
