"""Where to evaluate when one process is too few: on Ray Tune, here or on a cluster. The only home of Ray."""
