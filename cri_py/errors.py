"""Every error that cri_py raises on purpose.

One root, one class per way of failing. Each class carries the word of its gRPC status (``code``), so that the
interceptor in ``rpc`` can map it without this module knowing gRPC. A message names the object, the act and the cause;
``hint`` names the way out. Foreign errors are turned into one of these at the seam where they come in.
"""

from __future__ import annotations

from typing import ClassVar


class CriError(Exception):
    """Something failed that the caller should hear about, in words meant for a person."""

    code: ClassVar[str] = "UNKNOWN"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class InvalidArgument(CriError):
    """The request can't be served on any node: a field is missing or contradicts another."""

    code = "INVALID_ARGUMENT"


class NotFound(CriError):
    """The object that the request names does not exist here."""

    code = "NOT_FOUND"


class AlreadyExists(CriError):
    """Another object holds the name."""

    code = "ALREADY_EXISTS"


class FailedPrecondition(CriError):
    """The object is in a state that does not allow the act."""

    code = "FAILED_PRECONDITION"


class ResourceExhausted(CriError):
    """No address, space or place is left."""

    code = "RESOURCE_EXHAUSTED"


class Unavailable(CriError):
    """A part that the act needs does not answer; a retry may succeed."""

    code = "UNAVAILABLE"


class RegistryUnavailable(Unavailable):
    """No host of an image could be reached at all.

    The kubelet shows it as the reason of the waiting container, and tells it by the first word of the message; but only
    of an UNKNOWN status, whose code it strips (cri-client, remote_image.go; cri-api, pkg/errors).
    """

    code = "UNKNOWN"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(f"RegistryUnavailable: {message}", hint=hint)


class SignatureValidationFailed(CriError):
    """The node's policy, or a program that verifies images, refuses an image; told as RegistryUnavailable is."""

    code = "UNKNOWN"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(f"SignatureValidationFailed: {message}", hint=hint)


class DeadlineExceeded(CriError):
    """The act did not end within its time."""

    code = "DEADLINE_EXCEEDED"


class Aborted(CriError):
    """The act was given up halfway and undone; a retry is safe."""

    code = "ABORTED"


class PermissionDenied(CriError):
    """A registry or the kernel refused for want of rights."""

    code = "PERMISSION_DENIED"


class Unimplemented(CriError):
    """CRI has it, this version has not yet; the message names it."""

    code = "UNIMPLEMENTED"


class DataLoss(CriError):
    """What is stored, or what a registry sent, is not what its digest says; or a stream has a gap."""

    code = "DATA_LOSS"


class Internal(CriError):
    """The runtime itself failed: a syscall, a helper process, the store."""

    code = "INTERNAL"


class StartError(CriError):
    """The program could not be executed; the container ends as exited with code 128, reason StartError."""

    code = "UNKNOWN"


class ConfigError(CriError):
    """Our own configuration is wrong; the message names file, key and line."""

    code = "INVALID_ARGUMENT"


class KernelError(OSError):
    """A syscall failed: errno, with the syscall's name and its object.

    ``str()`` reads ``mount(overlay on /x): No such file or directory``.
    """

    def __init__(self, errno: int, strerror: str, syscall: str, subject: str = "") -> None:
        super().__init__(errno, strerror)
        self.syscall = syscall
        self.subject = subject

    def __str__(self) -> str:
        return f"{self.syscall}({self.subject}): {self.strerror}"
