"""Every table, imported in one place, so that the metadata is whole for migrations."""

from portal.database import Base
from portal.faults.models import Fault
from portal.flows.models import Flow, FlowActivity
from portal.nodes.models import Announcement, Node, NodeEvent, NodeService, NodeTag, VerificationCode
from portal.organizations.models import Organization
from portal.people.models import Person, PersonSession, SetupToken
from portal.services.models import Service, ServiceVersion
from portal.tracking.models import TrackingRecord

__all__ = [
    "Announcement",
    "Base",
    "Fault",
    "Flow",
    "FlowActivity",
    "Node",
    "NodeEvent",
    "NodeService",
    "NodeTag",
    "Organization",
    "Person",
    "PersonSession",
    "Service",
    "ServiceVersion",
    "SetupToken",
    "TrackingRecord",
    "VerificationCode",
]
