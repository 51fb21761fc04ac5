"""Sessions of every transport behind one shape, which ``events`` describes."""

from __future__ import annotations

from collections.abc import Sequence

from cri_py.wire.channel_session import ChannelCommand, ChannelForward
from cri_py.wire.channels import TUNNEL, Agreement, Streams, Transport
from cri_py.wire.events import Command, Forward
from cri_py.wire.spdy_session import SpdyCommand, SpdyForward


def remote_command(agreement: Agreement, streams: Streams) -> Command:
    """The session of an exec or attach with ``streams``."""
    if agreement.transport is Transport.SPDY:
        return SpdyCommand(agreement.protocol, streams)
    return ChannelCommand(agreement.protocol, streams)


def port_forward(agreement: Agreement, ports: Sequence[int]) -> Forward:
    """The session of a port-forward. ``ports`` are forwarded at once by the protocols whose clients name none."""
    if agreement.transport is Transport.SPDY:
        return SpdyForward(tunnelled=False)
    if agreement.protocol == TUNNEL:
        return SpdyForward(tunnelled=True)
    return ChannelForward(agreement.protocol, ports)
