"""``cri-py image …``: the image store of a node, from the command line."""

from __future__ import annotations

from cri_py.config import Config
from cri_py.images import offline
from cri_py.images.offline import Outcome


def check(config: Config, *, deep: bool, repair: bool, dry_run: bool) -> Outcome:
    """``cri-py image check``."""
    return offline.check(config, deep=deep, repair=repair and not dry_run)


def as_text(outcome: Outcome, *, repair: bool, dry_run: bool) -> str:
    """For people: a line each, a summary as the last one."""
    lines = [str(trouble) for trouble in outcome.found]
    count, left = len(outcome.found), len(outcome.left)
    if not count:
        summary = "nothing is wrong"
    elif repair and not dry_run:
        summary = f"{count} found, {count - left} repaired" + (f", {left} left" if left else "")
    elif repair:
        summary = f"{count} would be repaired: layers unpacked again, orphans deleted, images without blobs forgotten"
    else:
        summary = f"{count} found; --repair mends, --repair --dry-run tells what that does"
    return "\n".join([*lines, summary]) + "\n"
