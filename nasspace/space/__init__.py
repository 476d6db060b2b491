"""Search spaces: the YAML grammar, the tree of choices, the reachable range of costs."""
