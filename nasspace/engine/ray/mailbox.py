"""Actor between the driver and the workers of a Ray cluster; it imports little."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any


class Mailbox:
    """Actor that passes candidates to the workers, by worker, and outcomes to the driver, by trial number.

    Outcomes are too large for Tune's result tables. The methods are coroutines, so that every worker can wait here.
    Payload and outcomes arrive serialized (`payload.serialized`), so that this process imports neither PyTorch nor the
    user's code, which would take seconds and some hundred megabytes.
    """

    def __init__(self) -> None:
        self._payload: list[Any] = []
        self._outcomes: dict[int, bytes] = {}
        self._candidates: defaultdict[int, asyncio.Queue[dict[str, Any] | None]] = defaultdict(asyncio.Queue)
        self._closed = False
        self._checkpoints: defaultdict[int, dict[str, bytes]] = defaultdict(dict)
        self._unsaved: set[tuple[int, str]] = set()
        self._epochs: dict[int, tuple[int, int]] = {}
        self._notes: list[str] = []

    async def store_payload(self, payload: Any) -> list[Any]:
        """Put the payload into the object store; return its reference in a list, as Ray resolves a bare one."""
        import ray

        self._payload = [ray.put(payload)]
        return self._payload

    async def payload(self) -> list[Any]:
        """The reference to the payload, in a list."""
        return self._payload

    async def send(self, worker: int, candidate: dict[str, Any]) -> None:
        """Queue a candidate for a worker."""
        self._candidates[worker].put_nowait(candidate)

    async def receive(self, worker: int) -> dict[str, Any] | None:
        """Wait for the next candidate of a worker; None if there will be none."""
        return None if self._closed else await self._candidates[worker].get()

    async def close(self) -> None:
        """Release the workers that wait."""
        self._closed = True
        for queue in self._candidates.values():
            queue.put_nowait(None)

    async def put_outcome(self, number: int, outcome: bytes) -> None:
        """Store the serialized outcome of a trial, or the error that it raised."""
        self._outcomes[number] = outcome

    async def pop_outcome(self, number: int) -> bytes | None:
        """Pop and return the serialized outcome of a trial, and drop its checkpoints; None if it has none."""
        if number in self._outcomes:
            await self.drop_checkpoints(number)
        self._epochs.pop(number, None)
        return self._outcomes.pop(number, None)

    async def drop_checkpoints(self, number: int) -> None:
        """Drop the checkpoints of a trial, whose training is over."""
        self._checkpoints.pop(number, None)

    async def put_checkpoint(self, number: int, name: str, content: bytes) -> None:
        """Store a checkpoint file of a trial's training, in place of the one of that name."""
        self._checkpoints[number][name] = content
        self._unsaved.add((number, name))

    async def checkpoints(self, number: int) -> dict[str, bytes]:
        """The checkpoint files of a trial's training by name, for a process that continues it."""
        return self._checkpoints.get(number, {})

    async def put_epoch(self, number: int, epoch: int, epochs: int) -> None:
        """Store how many epochs of a trial's training are done."""
        self._epochs[number] = (epoch, epochs)

    async def put_note(self, text: str) -> None:
        """Store a sentence for the user."""
        self._notes.append(text)

    async def news(self) -> tuple[list[tuple[int, str, bytes]], dict[int, tuple[int, int]], list[str]]:
        """What the driver saves and tells: new checkpoints (trial, name, content), epochs done by trial, new notes."""
        unsaved = [(n, name, self._checkpoints[n][name]) for n, name in sorted(self._unsaved) if n in self._checkpoints]
        self._unsaved.clear()
        notes, self._notes = self._notes, []
        return unsaved, dict(sorted(self._epochs.items())), notes
