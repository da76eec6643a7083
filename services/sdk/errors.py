"""What the service API raises, as one tree.

ServiceError
├── NotRunningError (RuntimeError)    the service was made without a node: in an editor, a shell, a plain test
├── UnknownServiceError (LookupError) no such service, or it has no such method
├── RequestFailedError                the other service's method raised, or ended before it answered
├── SubmissionRefusedError            the node's outbox did not take a message
└── PackagesUnavailableError          a package could not be installed

Arguments that cannot be right raise the builtin ValueError or TypeError; a `Request` that takes too long raises the
builtin TimeoutError.
"""

from __future__ import annotations


class ServiceError(Exception):
    """The root of what the service API raises."""


class NotRunningError(ServiceError, RuntimeError):
    """The service object has no node around it."""


class UnknownServiceError(ServiceError, LookupError):
    """No service of that id runs on the node, or it has no method of that name."""


class RequestFailedError(ServiceError):
    """The method of the other service raised, or that service ended before it answered."""


class SubmissionRefusedError(ServiceError):
    """The outbox did not take the message; the text says why (for instance: the disk is full)."""


class PackagesUnavailableError(ServiceError):
    """A package could not be installed; the text carries the installer's reason."""
