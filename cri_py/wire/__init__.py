"""Protocols of exec, attach and port-forward without I/O: bytes in, events out; commands in, bytes out.

``negotiation`` reads the request's head and answers it; ``session`` is what the stream process drives, the same for
every transport; below it ``spdy`` and ``websocket`` frame bytes, and ``channels`` says what the streams mean.
"""
