"""What services in the field import: ``from queue_message import QueueMessage``."""

from services.sdk.queue_message import QueueMessage

__all__ = ["QueueMessage"]
