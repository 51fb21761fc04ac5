"""The certificate of the streaming front: read anew when its files change, or made at the start."""

from __future__ import annotations

import os
import ssl
from typing import Final

from cri_py.config import StreamingConfig
from cri_py.errors import FailedPrecondition

_VERSIONS: Final = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


class Certificates:
    """Gives each new connection the newest context. A file that became unreadable leaves the one before in force."""

    def __init__(self, config: StreamingConfig) -> None:
        self._config = config
        self._context: ssl.SSLContext | None = None
        self._read: tuple[tuple[int, int], ...] = ()

    def current(self) -> ssl.SSLContext:
        """Raises FailedPrecondition if there has never been a certificate that could be read."""
        files = (self._config.tls_certificate, self._config.tls_key)
        try:
            now = tuple((found.st_mtime_ns, found.st_ino) for found in map(os.stat, files))
            if self._context is None or now != self._read:
                self._context, self._read = self._load(files), now
        except (OSError, ssl.SSLError) as error:
            if self._context is None:
                raise FailedPrecondition(
                    f"the streaming certificate {files[0]} with the key {files[1]} can't be read: {error}",
                    hint="set streaming.tls_certificate and streaming.tls_key to PEM files that belong together",
                ) from error
        return self._context

    def _load(self, files: tuple[str, str]) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = _VERSIONS[self._config.tls_min_version]
        context.load_cert_chain(*files)
        return context
