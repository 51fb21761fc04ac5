"""A limit on what an interface sends, as a token bucket: tc-tbf(8), linux/pkt_sched.h. Pure."""

from __future__ import annotations

import struct
from typing import Final

from cri_py.network.netlink import NESTED, NLM_F_CREATE, NLM_F_REPLACE, Request, attribute

RTM_NEWQDISC: Final = 36
_TCA_KIND: Final = 1
_TCA_OPTIONS: Final = 2
_TCA_TBF_PARMS: Final = 1
_TCA_TBF_RATE64: Final = 4
_TCA_TBF_BURST: Final = 6
_HANDLE: Final = 1 << 16  # 1:
_ROOT: Final = 0xFFFFFFFF
_ETHERNET: Final = 1  # the kernel then computes times itself and wants no table

_QDISC: Final = struct.Struct("=BxxxiIII")  # tcmsg
_RATE: Final = struct.Struct("=BBHhHI")  # tc_ratespec
_PACKET_BYTES: Final = 1 << 16  # what a segment of TCP may have before it is cut (GSO)
_BURST_S: Final = 0.02
_QUEUE_S: Final = 0.05  # longer than that a packet doesn't wait


def limit(index: int, name: str, bits_per_s: int) -> Request:
    """Let an interface send no more than ``bits_per_s``, over some ten milliseconds. Replaces its queue."""
    rate = max(bits_per_s // 8, 1)
    burst = max(int(rate * _BURST_S), 2 * _PACKET_BYTES)
    queue = burst + max(int(rate * _QUEUE_S), _PACKET_BYTES)
    spec = _RATE.pack(0, _ETHERNET, 0, 0, 0, min(rate, 0xFFFFFFFF))
    parameters = spec + _RATE.pack(0, 0, 0, 0, 0, 0) + struct.pack("=III", min(queue, 0xFFFFFFFF), 0, 0)
    options = (
        attribute(_TCA_TBF_PARMS, parameters)
        + attribute(_TCA_TBF_RATE64, struct.pack("=Q", rate))
        + attribute(_TCA_TBF_BURST, struct.pack("=I", min(burst, 0xFFFFFFFF)))
    )
    body = _QDISC.pack(0, index, _HANDLE, _ROOT, 0) + attribute(_TCA_KIND, b"tbf\0")
    body += attribute(_TCA_OPTIONS | NESTED, options)
    return Request(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_REPLACE, body, f"limit {name} to {bits_per_s} bit/s (sch_tbf)")
