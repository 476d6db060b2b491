"""Evaluation of candidates on Ray Tune, on this machine or on a cluster; only this package imports Ray."""
