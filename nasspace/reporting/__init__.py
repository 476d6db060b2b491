"""A study as one page: computed, then drawn."""
