"""The whole explanation of a container, from what was seen of it or, where it has no process, from its record. Pure."""

from __future__ import annotations

from typing import Any, Final

from cri_py.explain import files, limits, sections
from cri_py.explain.facts import Explanation, Fact, Section, Seen, Subject
from cri_py.explain.record import of_record

VERSION: Final = 1  # of the document; a field that changes its meaning raises it, one that is added does not
_ENDED: Final = {
    "created": "it has not been started: its init waits, and the kernel will show what it was made to be",
    "exited": "it has ended, so the kernel shows nothing of it",
    "unknown": "nobody saw how it ended, so the kernel shows nothing of it",
}


def of_kernel(subject: Subject, seen: Seen) -> Explanation:
    return Explanation(
        subject,
        "kernel",
        "",
        (
            sections.namespaces(subject, seen),
            sections.user(subject, seen),
            sections.rights(subject, seen),
            sections.confinement(subject, seen),
            files.mounts(subject, seen),
            files.devices(subject, seen),
            limits.cgroup(subject, seen),
            limits.process(subject, seen),
        ),
    )


def without_process(subject: Subject) -> Explanation:
    why = f"{_ENDED.get(subject.state, 'it has just ended')}; this is what its record says"
    if not subject.asked.document:
        why += ", of which the bundle is gone since the node was started anew"
    return Explanation(subject, "record", why, of_record(subject))


# ------------------------------------------------------------- for programs


def as_document(explanation: Explanation) -> dict[str, Any]:
    """JSON; docs/explain.md describes its shape."""
    subject = explanation.subject
    metadata = subject.asked.sandbox.get("metadata", {})
    return {
        "version": VERSION,
        "source": explanation.source,
        "why": explanation.why,
        "container": {
            "id": subject.id,
            "name": subject.name,
            "image": subject.image,
            "image_id": subject.image_id,
            "state": subject.state,
            "pid": subject.pid,
            "created_at": subject.created_at,
            "started_at": subject.started_at,
            "finished_at": subject.finished_at,
            "exit_code": subject.exit_code if subject.state in ("exited", "unknown") else None,
            "reason": subject.reason,
            "message": subject.message,
            "cgroup": subject.cgroup,
            "bundle": subject.bundle,
        },
        "pod": {
            "id": subject.sandbox_id,
            "name": metadata.get("name", ""),
            "namespace": metadata.get("namespace", ""),
            "uid": metadata.get("uid", ""),
            "holder_pid": subject.holder_pid,
            "monitor_pid": subject.monitor_pid,
        },
        "sections": {section.name: _section(section) for section in explanation.sections},
    }


def _section(section: Section) -> dict[str, Any]:
    return {
        "title": section.title,
        "about": section.about,
        "pages": list(section.pages),
        "made_by": list(section.made_by),
        "facts": [_fact(fact) for fact in section.facts],
    }


def _fact(fact: Fact) -> dict[str, Any]:
    return {
        "name": fact.name,
        "value": fact.value,
        "text": fact.text,
        "from": {"of": fact.origin.of, "field": fact.origin.field, "asked": fact.origin.asked},
        "read": fact.read,
        "means": fact.means,
        "differs": fact.differs,
    }
