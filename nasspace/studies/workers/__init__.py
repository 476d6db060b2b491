"""Where to evaluate when one process is too few: on Ray Tune, on this machine or a cluster. The only home of Ray."""

from __future__ import annotations

from nasspace.studies.workers.tuning import run

__all__ = ["run"]
