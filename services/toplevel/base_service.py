"""What services in the field import: ``from base_service import CustomService``."""

from services.sdk.base_service import BaseService, CustomService
from services.sdk.errors import ServiceError

__all__ = ["BaseService", "CustomService", "ServiceError"]
