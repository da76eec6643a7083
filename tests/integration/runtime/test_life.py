"""A service's life in its own process."""

from __future__ import annotations

import os
from typing import Any

SAMPLE = """
from queue import Queue
from base_service import CustomService

class YOUR_SERVICE_NAME(CustomService):
    def __init__(self, id, queue, config):
        # Write your code here
        super(YOUR_SERVICE_NAME, self).__init__(id, queue, config)

    async def Start(self):
        try:
            await self.Debug("Started")
            # Write your code here
        except Exception as ex:
            await self.Debug(f"Failed to start: {ex}")

    async def Stop(self):
        try:
            # Write your code here
            await self.Debug("Stopped")
        except Exception as ex:
            await self.Debug(f"Failed to stop: {ex}")
"""


async def test_sample_service_of_the_authors_guide_starts_and_stops_unmodified(node: Any) -> None:
    await node.run(SAMPLE)
    started = await node.line("Started")
    assert (started.service, started.level) == ("your_service_name_py", "debug")
    status = await node.state("your_service_name_py", "running")
    assert status.pid not in (None, os.getpid())

    await node.run()

    assert "Stopped" in node.texts()
    assert node.orchestrator.statuses() == []
    assert not node.faults()


async def test_submitted_messages_reach_the_outbox_in_order(node: Any) -> None:
    await node.run(
        """
        from base_service import CustomService
        import json

        class Meter(CustomService):
            async def Start(self):
                for number in range(500):
                    await self.SubmitMessage(json.dumps({"number": number}))
                await self.Debug("done")
        """
    )
    await node.line("done")
    assert node.payloads("meter_py") == [{"number": number} for number in range(500)]
    assert {one.producer_sequence for one in node.submissions} == set(range(1, 501))
