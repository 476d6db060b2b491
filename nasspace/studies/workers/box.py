"""The process between the driver and the workers of a cluster: it keeps what is on its way, and imports little."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any


class Box:
    """Candidates on their way to the workers, by worker, and outcomes on their way back, by trial number.

    Outcomes are too large for Tune's tables of results. The methods are coroutines, so that every worker can wait here.
    What passes here is packed (`parts.packed`), so that this process imports neither torch nor the user's own code: it
    would take it seconds and some hundred megabytes.
    """

    def __init__(self) -> None:
        self._sent: list[Any] = []
        self._outcomes: dict[int, bytes] = {}
        self._given: defaultdict[int, asyncio.Queue[dict[str, Any] | None]] = defaultdict(asyncio.Queue)
        self._ended = False

    async def keep(self, sent: Any) -> list[Any]:
        """Store what the workers are sent; the reference to it, in a list, as Ray replaces a bare one by its value."""
        import ray

        self._sent = [ray.put(sent)]
        return self._sent

    async def sent(self) -> list[Any]:
        return self._sent

    async def give(self, worker: int, asked: dict[str, Any]) -> None:
        self._given[worker].put_nowait(asked)

    async def next(self, worker: int) -> dict[str, Any] | None:
        """Wait for the candidate of a worker; None if there will be none."""
        return None if self._ended else await self._given[worker].get()

    async def end(self) -> None:
        """Release the workers that wait."""
        self._ended = True
        for waiting in self._given.values():
            waiting.put_nowait(None)

    async def put(self, number: int, outcome: bytes) -> None:
        self._outcomes[number] = outcome

    async def take(self, number: int) -> bytes | None:
        """Pop and return the outcome of a trial."""
        return self._outcomes.pop(number, None)
