"""From a service's process into the outbox, in order, many at once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from agent.errors import StorageError
from agent.outbox.message import Submission
from agent.runtime.frames import Committed, FrameLink, Refused

SubmitMany = Callable[[Sequence[Submission], Callable[[list[int], StorageError | None], None]], None]
"""Hands in messages as one transaction; the callback gets their sequences, or why they were not stored."""


class SubmissionRelay:
    """Gathers the submissions of one process while the loop turns and hands them in as one. On the loop only.

    Acknowledgements leave in the order of the submissions, the last number speaking for those before it.
    """

    def __init__(self, submit_many: SubmitMany, link: FrameLink) -> None:
        self._submit_many = submit_many
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._gathered: list[Submission] = []
        self._numbers: list[int] = []
        self._batches: deque[_Batch] = deque()

    def put(self, submission: Submission) -> None:
        """Hand one in."""
        self._number(submission)
        self._gathered.append(submission)

    def skip(self, submission: Submission) -> None:
        """Acknowledge one in its turn without storing it."""
        self._number(submission)

    def _number(self, submission: Submission) -> None:
        if not self._numbers:
            self._loop.call_soon(self._hand_in)
        self._numbers.append(submission.producer_sequence)

    def _hand_in(self) -> None:
        gathered, self._gathered = self._gathered, []
        numbers, self._numbers = self._numbers, []
        batch = _Batch(numbers)
        self._batches.append(batch)
        if not gathered:
            batch.done = True
            self._acknowledge()
            return

        def answered(_sequences: list[int], error: StorageError | None) -> None:
            batch.done, batch.error = True, error
            self._acknowledge()

        try:
            self._submit_many(gathered, answered)
        except (StorageError, ValueError) as error:
            batch.done, batch.error = True, error
            self._acknowledge()

    def _acknowledge(self) -> None:
        committed = 0
        while self._batches and self._batches[0].done:
            batch = self._batches.popleft()
            if batch.error is None:
                committed = batch.numbers[-1]
                continue
            if committed:
                self._link.write(Committed(committed))
                committed = 0
            for number in batch.numbers:
                self._link.write(Refused(number, str(batch.error)))
        if committed:
            self._link.write(Committed(committed))


class _Batch:
    __slots__ = ("done", "error", "numbers")

    def __init__(self, numbers: list[int]) -> None:
        self.numbers = numbers
        self.done = False
        self.error: Exception | None = None
