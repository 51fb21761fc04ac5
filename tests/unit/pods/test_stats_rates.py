"""CPU time as a rate of late, from the first call on."""

from __future__ import annotations

from cri_py.pods.stats_rates import Rate, Sample

SECOND = 1_000_000_000


def test_the_first_call_gets_the_rate_since_birth() -> None:
    rate = Rate(Sample(10 * SECOND, 0))
    assert rate.nano_cores(Sample(12 * SECOND, SECOND)) == SECOND // 2


def test_later_calls_get_the_rate_since_the_last_sample() -> None:
    rate = Rate(Sample(0, 0))
    rate.note(Sample(10 * SECOND, 9 * SECOND))
    assert rate.nano_cores(Sample(14 * SECOND, 10 * SECOND)) == SECOND // 4


def test_a_sample_that_was_just_taken_is_not_what_a_rate_is_made_from() -> None:
    rate = Rate(Sample(0, 0))
    rate.note(Sample(10 * SECOND, 5 * SECOND))
    assert rate.nano_cores(Sample(10 * SECOND + 5, 5 * SECOND + 5)) == SECOND // 2


def test_samples_in_quick_succession_do_not_shorten_the_window() -> None:
    rate = Rate(Sample(0, 0))
    for at in range(10 * SECOND, 10 * SECOND + 50, 10):
        rate.note(Sample(at, 5 * SECOND))
    assert rate.nano_cores(Sample(10 * SECOND + 60, 5 * SECOND)) == SECOND * 5 * SECOND // (10 * SECOND + 60)


def test_a_rate_is_never_negative_and_never_divides_by_nothing() -> None:
    rate = Rate(Sample(10, 100))
    assert rate.nano_cores(Sample(10, 200)) == 0
    assert rate.nano_cores(Sample(2 * SECOND, 50)) == 0
