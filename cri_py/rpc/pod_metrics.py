"""Metrics as CRI's messages, encoded by hand.

A node with 100 pods has some ten thousand metrics of eight strings each. By protobuf's own objects they take a quarter
of a second, joined from encoded parts a tenth of that: a series' name, an object's labels and a time are encoded once.
CRI's numbers are whole (UInt64Value), so seconds lose their fraction, as with peers; /metrics/cadvisor has it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Final

from cri_py.pods import metrics_series as series
from cri_py.pods.metrics import Metrics, SandboxMetrics
from cri_py.pods.metrics_series import BASE_LABELS, Series
from cri_py.rpc.gen import api_pb2 as pb
from cri_py.rpc.listing import BATCH

_NANOS: Final = 1_000_000_000
_UINT64: Final = (1 << 64) - 1
# Tags: field number and wire type (protobuf.dev/programming-guides/encoding).
_ITEM: Final = b"\x0a"  # 1: the items of the lists; the ids
_METRICS: Final = b"\x12"  # PodSandboxMetrics.metrics = 2, ContainerMetrics.metrics = 2
_CONTAINERS: Final = b"\x1a"  # PodSandboxMetrics.container_metrics = 3
_NAME: Final = b"\x0a"
_TIMESTAMP: Final = b"\x10"
_GAUGE: Final = b"\x18\x01"  # a counter is 0, which is not written
_LABEL: Final = b"\x22"
_VALUE: Final = b"\x2a"
_NO_VALUE: Final = b"\x2a\x00"  # a message whose number is 0


def descriptors() -> pb.ListMetricDescriptorsResponse:
    """All series that there may be."""
    return pb.ListMetricDescriptorsResponse(
        descriptors=[
            pb.MetricDescriptor(name=each.name, help=each.help, label_keys=(*BASE_LABELS, *each.labels))
            for each in series.ALL
        ]
    )


def whole(found: Sequence[SandboxMetrics]) -> bytes:
    """An encoded ListPodSandboxMetricsResponse, or a part of its stream."""
    return b"".join([_framed(_ITEM, _sandbox(each)) for each in found])


def parts(found: Sequence[SandboxMetrics]) -> Iterator[bytes]:
    """The messages of StreamPodSandboxMetrics: none is empty (KEP-5825)."""
    return (whole(found[start : start + BATCH]) for start in range(0, len(found), BATCH))


def _sandbox(found: SandboxMetrics) -> bytes:
    at = _TIMESTAMP + _varint(found.at)
    metrics = [_metrics(each, at) for each in found.own]
    members = [_framed(_CONTAINERS, _string(_ITEM, each.id) + _metrics(each, at)) for each in found.containers]
    return b"".join([_string(_ITEM, found.own[0].id), *metrics, *members])


def _metrics(found: Metrics, at: bytes) -> bytes:
    labels = b"".join([_string(_LABEL, value) for value in found.labels])
    encoded: list[bytes] = []
    for each, values, number in found.points:
        name, kind = _head(each)
        own = _own_labels(values) if values else b""
        value = _value(number // _NANOS if each.nanos else number)
        size = len(name) + len(at) + len(kind) + len(labels) + len(own) + len(value)
        encoded += (_METRICS, _varint(size), name, at, kind, labels, own, value)
    return b"".join(encoded)


@lru_cache(maxsize=256)
def _head(each: Series) -> tuple[bytes, bytes]:
    return _string(_NAME, each.name), b"" if each.kind is series.Kind.COUNTER else _GAUGE


@lru_cache(maxsize=4096)
def _own_labels(values: tuple[str, ...]) -> bytes:
    return b"".join([_string(_LABEL, value) for value in values])


@lru_cache(maxsize=4096)
def _value(number: int) -> bytes:
    """Most are limits and zeros, the same over and over."""
    if not number:
        return _NO_VALUE
    encoded = b"\x08" + _varint(number & _UINT64)  # -1 stands for no limit, in the kernel too
    return b"%b%c%b" % (_VALUE, len(encoded), encoded)


def _string(tag: bytes, text: str) -> bytes:
    return _framed(tag, text.encode())


def _framed(tag: bytes, encoded: bytes) -> bytes:
    """A length-delimited field: tag, length, content."""
    return b"".join((tag, _varint(len(encoded)), encoded))


@lru_cache(maxsize=4096)
def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)
