"""Search spaces: the grammar, what is chosen where, what is reachable."""
