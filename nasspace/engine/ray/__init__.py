"""Candidates evaluated on Ray Tune, on this machine or on a cluster. The only home of Ray."""
