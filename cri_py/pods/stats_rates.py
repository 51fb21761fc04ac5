"""From a counter to a rate: CPU time as nano-cores of late. Pure."""

from __future__ import annotations

from typing import Final, NamedTuple

_WINDOW_NS: Final = 1_000_000_000  # below it, when a tick of the kernel's accounting happens decides too much


class Sample(NamedTuple):
    """A counter of CPU time (ns) and when it was read, in ns of a clock that only goes forward."""

    at: int
    cpu_ns: int


class Rate:
    """The last samples of one group, the first of them its birth: so there is a rate from the first call on."""

    __slots__ = ("_newer", "_older")

    def __init__(self, birth: Sample) -> None:
        self._older = self._newer = birth

    def note(self, sample: Sample) -> None:
        """Take a sample, of the background or of a call; one that comes soon after the last is not needed."""
        if sample.at - self._newer.at >= _WINDOW_NS:
            self._older, self._newer = self._newer, sample

    def nano_cores(self, now: Sample) -> int:
        """CPU time per second since the last sample that is old enough to tell, over all cores: 1e9 is one core.

        A group that was made less than a second ago has none that old; what it used since its birth then counts.
        """
        since = self._newer if now.at - self._newer.at >= _WINDOW_NS else self._older
        elapsed = now.at - since.at
        if elapsed <= 0:
            return 0
        return max(now.cpu_ns - since.cpu_ns, 0) * 1_000_000_000 // elapsed
