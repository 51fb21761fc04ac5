"""``cri-py explain CONTAINER``: what isolates a container and what limits it, read back from the kernel."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from typing import Final, TextIO

from cri_py.config import Config
from cri_py.errors import NotFound
from cri_py.explain import account, reading, text
from cri_py.explain.facts import Explanation
from cri_py.rpc.runtime_client import RuntimeClient

_PLAIN_WIDTH: Final = 100
_WIDEST: Final = 120  # longer lines are hard to read, however wide the terminal is


def explain(config: Config, parsed: argparse.Namespace, out: TextIO) -> int:
    """A page for people, with ``--json`` a document for programs."""
    with RuntimeClient(config.listen) as client:
        explanation = look(client, parsed.container)
    if parsed.json:
        out.write(json.dumps(account.as_document(explanation), indent=1) + "\n")
    else:
        terminal = out.isatty()
        width = min(shutil.get_terminal_size((_PLAIN_WIDTH, 24)).columns, _WIDEST) if terminal else _PLAIN_WIDTH
        out.write(text.page(explanation, width=width, colours=terminal and not os.environ.get("NO_COLOR")))
    return 0


def look(client: RuntimeClient, container_id: str) -> Explanation:
    """From the kernel where the container runs, else from its record: also where it ends while it is looked at."""
    try:
        subject = client.subject(container_id)
    except NotFound as error:
        raise NotFound(error.message, hint="crictl ps -a lists those that are here") from error
    if subject.pid == 0:
        return account.without_process(subject)
    try:
        return account.of_kernel(subject, reading.look(subject, client.members(subject.sandbox_id)))
    except reading.Gone:
        return account.without_process(client.subject(subject.id))
