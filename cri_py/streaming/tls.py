"""The certificate of the streaming front: read anew when its files change, or an own one, made anew in time."""

from __future__ import annotations

import os
import socket
import ssl
import time
from typing import Final

import structlog

from cri_py.config import StreamingConfig
from cri_py.errors import FailedPrecondition
from cri_py.streaming import own_certificate

_VERSIONS: Final = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_RENEWAL_S: Final = own_certificate.LIFE_DAYS * 86400 / 2
_PATIENCE_S: Final = 10.0  # between two complaints about files that can't be read

log = structlog.get_logger()


class Certificates:
    """Gives each new connection the newest context. Files that became unreadable leave the ones before in force."""

    def __init__(self, config: StreamingConfig) -> None:
        self._config = config
        self._files = (config.tls_certificate, config.tls_key)
        self._context: ssl.SSLContext | None = None
        self._read: tuple[tuple[int, int], ...] = ()
        self._made = 0.0
        self._complained = -_PATIENCE_S

    def current(self) -> ssl.SSLContext:
        """Raises FailedPrecondition if there has never been a certificate that could be had."""
        if not any(self._files):
            return self._own()
        if not all(self._files):
            raise FailedPrecondition(
                f"streaming.tls_certificate is {self._files[0]!r} and streaming.tls_key {self._files[1]!r}",
                hint="set both, or none to have a certificate made",
            )
        try:
            now = tuple((found.st_mtime_ns, found.st_ino) for found in map(os.stat, self._files))
            if self._context is None or now != self._read:
                self._context, self._read = self._load(*self._files), now
        except (OSError, ssl.SSLError) as error:
            if self._context is None:
                raise FailedPrecondition(
                    f"the streaming certificate {self._files[0]} with the key {self._files[1]} can't be read: {error}",
                    hint="set streaming.tls_certificate and streaming.tls_key to PEM files that belong together",
                ) from error
            self._complain(error)
        return self._context

    def _own(self) -> ssl.SSLContext:
        now = time.monotonic()
        if self._context is None or now - self._made >= _RENEWAL_S:
            pem = own_certificate.make([self._config.host, socket.gethostname(), "localhost"])
            fd = os.memfd_create("certificate", os.MFD_CLOEXEC)  # OpenSSL wants a path, and no disk need see the key
            try:
                os.write(fd, pem)
                self._context, self._made = self._load(f"/proc/self/fd/{fd}"), now
            finally:
                os.close(fd)
        return self._context

    def _load(self, certificate: str, key: str | None = None) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = _VERSIONS[self._config.tls_min_version]
        context.load_cert_chain(certificate, key)
        return context

    def _complain(self, error: OSError) -> None:
        now = time.monotonic()
        if now - self._complained >= _PATIENCE_S:
            self._complained = now
            log.warning("the new streaming certificate can't be read: the one before stays", cause=str(error))
