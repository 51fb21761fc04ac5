"""The same promises asked of Debian's containerd: ``pytest --peer runc tests/system``.

A test of CRI's behaviour that only ours passes tests us and not CRI. What containerd 1.6 lacks, and what we promise
beyond CRI, stands here with the reason; every other test of the socket must pass against it.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from critest.images import programs
from tests.bench.peers import PAUSE, containerd, remove_groups
from tests.simulators.kubelet import Kubelet
from tests.simulators.registry import File, RegistrySimulator, tar_layer

# Fixtures of a test that needs our own daemon: its files, its log, its death.
OURS: Final = frozenset({"daemon", "fresh_daemon", "make_daemon"})

_GROUP: Final = "/cri_py-peer"
_RETRIES: Final = "1.6 answers a retry with: the name is reserved"
_ENDS: Final = "1.6 answers NotFound where CRI wants success"
_EVENTS: Final = "1.6 has no events"
_STREAMS: Final = "1.6 has no streamed lists"
_TEXT: Final = "the text is our own promise"
_FIELD: Final = "1.6 does not know the field"

# Whole modules: what they promise is ours by its codes and texts, or of our own processes.
LACKS_MODULES: Final = {
    "test_refusals": "1.6 answers most refusals with UNKNOWN",
    "test_node": "it asks what ours says about itself",
    "test_propagation": "containerd runs in a mount namespace of its own here",
    "test_faults": "1.6 does not undo what a caller has left",
    "test_updates": "1.6 refuses with UNKNOWN, and reports swap that was not asked for",
    "test_metrics": "1.6 has no metrics",
    "test_oom": "1.6 may miss the event on cgroup v1, and blames it for any end that comes later",
    "test_top": "it asks our own command",
}
LACKS: Final = {
    "test_a_retried_run_of_a_pod_is_answered_with_the_same_id": _RETRIES,
    "test_a_retried_create_of_a_container_is_answered_with_the_same_id": _RETRIES,
    "test_duplicate_calls_at_the_same_time_make_one": _RETRIES,
    "test_the_same_pod_with_another_config_exists_already": _RETRIES,
    "test_the_same_container_with_another_config_exists_already": _RETRIES,
    "test_a_sandbox_that_was_stopped_is_not_an_answer_to_a_run": _RETRIES,
    "test_what_is_not_there_is_stopped_and_removed_already": _ENDS,
    "test_stops_and_removes_at_the_same_time_all_succeed": "1.6 refuses a second removal under way",
    "test_a_pod_that_is_stopped_keeps_its_record_until_it_is_removed": _TEXT,
    "test_stopping_a_pod_ends_its_containers": "1.6 leaves a created container created",
    "test_the_status_of_a_container_repeats_what_it_was_made_of": _FIELD,
    "test_pods_are_listed_by_id_prefix_state_and_labels": _STREAMS,
    "test_containers_are_listed_by_id_prefix_state_sandbox_and_labels": _STREAMS,
    "test_a_container_runs_logs_and_exits_with_its_code": "1.6 may note the start after the end",
    "test_times_are_those_of_the_events": "1.6 notes the start late",
    "test_the_stop_signal_is_the_configs_or_the_images_or_term": _FIELD,
    "test_what_cannot_start_ends_as_start_error_with_the_cause": _TEXT,
    "test_a_life_is_told_in_its_order": _EVENTS,
    "test_an_event_carries_the_statuses_of_its_moment": _EVENTS,
    "test_every_subscriber_is_told": _EVENTS,
    "test_a_program_that_cannot_start_is_told_as_stopped": _EVENTS,
    "test_stopping_a_pod_tells_of_its_containers_first": _EVENTS,
    "test_streams_list_what_there_is_and_end": _STREAMS,
    "test_a_stream_of_nothing_has_no_part": _STREAMS,
    "test_a_command_runs_as_the_container_does": "1.6 can't pass bytes that are no UTF-8",
    "test_environment_values_are_bytes": "1.6 can't pass bytes that are no UTF-8",
    "test_output_is_cut_at_16_mib": "what 1.6 answers then is larger than its own limit of a message",
    "test_a_command_past_its_time_is_killed_with_all_that_it_started": _TEXT,
    "test_a_command_in_a_shared_pid_namespace_ends_with_its_timeout": "1.6 kills the command alone",
    "test_a_background_child_that_keeps_the_pipe_delays_nothing_for_long": "1.6 waits for it without end",
    "test_a_container_runs_as_the_user_that_is_asked_for": _FIELD,
    "test_capabilities_are_added_and_dropped": "1.6 takes names without CAP_ alone",
    "test_the_default_apparmor_profile_is_granted_and_a_named_one_refused": "1.6 refuses it where there is no AppArmor",
    "test_a_container_that_needs_more_memory_than_it_may_is_oom_killed": "1.6 may miss the event on cgroup v1",
    "test_a_seccomp_filter_is_the_rule": "with no profile named 1.6 sets none",
    "test_the_default_filter_refuses_what_containers_have_no_business_with": "with no profile named 1.6 sets none",
    "test_hostname_hosts_and_resolver_are_the_pods": "1.6 gives pods the node's hosts file",
    "test_every_byte_is_logged": "1.6 marks an unfinished last line differently",
    "test_a_log_that_cannot_be_opened_holds_nothing_up": "1.6 does not start a container without its log",
    "test_a_running_container_has_its_numbers_from_the_first_call_on": "1.6 has no rate at first",
    "test_available_memory_is_what_the_limit_leaves": "1.6 tells the node's memory where there is no limit",
    "test_what_a_container_wrote_is_in_its_layer": "1.6 fails for a container that has ended",
    "test_created_and_ended_containers_are_told_too": "1.6 tells them without numbers",
    "test_filters_are_those_of_the_lists": _STREAMS,
    "test_a_pods_numbers_cover_its_containers": "1.6 counts the pause container's processes alone",
    "test_a_stopped_pod_is_not_listed_and_told_without_numbers": "1.6 fails for a stopped pod",
    "test_a_call_about_an_image_needs_its_name": "1.6 answers UNKNOWN",
    "test_what_is_no_image_ref_is_not_pulled": "1.6 answers UNKNOWN",
    "test_images_are_listed_by_name": "1.6 lists its pause image, too",
    "test_a_full_disk_loses_lines_and_counts_them_but_stops_nobody": "it reads our metrics",
}


def leave_out(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what can't be asked of a peer."""
    config.hook.pytest_deselected(items=[item for item in items if not _may_be_asked(item)])
    items[:] = [item for item in items if _may_be_asked(item)]


def _may_be_asked(item: pytest.Item) -> bool:
    fixtures = set(getattr(item, "fixturenames", ()))
    listed = item.path.stem in LACKS_MODULES or item.name.partition("[")[0] in LACKS
    return "kubelet" in fixtures and not OURS & fixtures and not listed


@contextlib.contextmanager
def serving(runtime: str, registry: RegistrySimulator) -> Iterator[Kubelet]:
    """Drives containerd with runc or crun, which takes all images from ``registry``."""
    pause = tar_layer(File("pause", programs.compiled("pause"), mode=0o755))
    repository, tag = PAUSE.partition("/")[2].split(":")
    registry.push(repository, tag, [pause], config={"Entrypoint": ["/pause"]})
    with (
        tempfile.TemporaryDirectory(prefix="peer-", ignore_cleanup_errors=True) as work,
        containerd(runtime, registry.host, Path(work)) as socket,
        Kubelet(socket, Path(work) / "logs", _GROUP) as kubelet,
    ):
        yield kubelet
        kubelet.sweep()
    remove_groups(_GROUP)
