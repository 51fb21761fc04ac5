"""A certificate that the daemon signs itself, for a front that is to speak TLS without files. Nobody can trust it but
who is told to: it hides what is said from listeners, as the kubelet's own one does."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Iterable
from typing import Final

from cri_py.errors import FailedPrecondition

LIFE_DAYS: Final = 365
_EARLIER: Final = datetime.timedelta(hours=1)  # clocks differ


def make(names: Iterable[str]) -> bytes:
    """PEM of a key (P-256) and its certificate for ``names``: addresses and host names, the first one its subject's.

    Raises FailedPrecondition where the library for it is missing.
    """
    try:
        from cryptography import x509  # noqa: PLC0415  # 5 MB that only this needs
        from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415
        from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415
        from cryptography.x509.oid import ExtendedKeyUsageOID  # noqa: PLC0415
    except ImportError as error:
        raise FailedPrecondition(
            "streaming.tls without a certificate needs the Python package cryptography, to make one",
            hint="pip install 'cri_py[tls]', or set streaming.tls_certificate and streaming.tls_key",
        ) from error
    wanted = list(dict.fromkeys(names))
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"cri_py streaming on {wanted[0]}"[:64])])
    alternatives = [x509.IPAddress(address) if (address := _address(name)) else x509.DNSName(name) for name in wanted]
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLIER)
        .not_valid_after(now + datetime.timedelta(days=LIFE_DAYS))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    form = serialization.PrivateFormat.PKCS8
    pem = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    return pem + certificate.public_bytes(serialization.Encoding.PEM)


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
