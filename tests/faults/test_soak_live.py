"""What the soak says of memory, on series that are made up: a node that only remembers its peaks, and one that leaks beside that."""

import random

import pytest

from tests.faults.soak_live import SAMPLE_S, Sample, grows

RATE = 50.0  # requests a second
STREAM_BYTES = 18_000  # kept of each that was in flight at the peak


def hour(seed: int, *, leak_bytes: float, late_peak: int = 0) -> list[Sample]:
    """An hour's samples: in flight is noise around 80 with bursts at faults; memory is what the peak so far needs, noise, and the leak."""
    draw = random.Random(seed)
    samples, most = [], 0
    for number in range(720):
        at_s = number * SAMPLE_S
        now = round(draw.gauss(80, 6) + (draw.uniform(0, 50) if draw.random() < 0.2 else 0))
        if late_peak and number == 600:
            now = late_peak
        most = max(most, now)
        requests = round(RATE * at_s)
        settling = 4e6 * min(at_s / 120, 1)  # buffers, code that is read at its first use
        rss = 70e6 + settling + STREAM_BYTES * most + draw.gauss(0, 60_000) + leak_bytes * requests
        samples.append(
            Sample(
                at_s=at_s, rss_bytes=round(rss), descriptors=20, threads=6, processes=4, engines_rss_bytes=0,
                in_flight=now, requests=requests, most_in_flight=most,
            )
        )  # fmt: skip
    return samples


@pytest.mark.parametrize("seed", range(12))
def test_a_node_that_only_remembers_its_peak_holds(seed):
    found, wrong = grows(hour(seed, leak_bytes=0.0))

    assert wrong == ""
    assert "bytes a request" in found


@pytest.mark.parametrize("seed", range(12))
def test_a_leak_of_64_bytes_a_request_does_not_hold(seed):
    _, wrong = grows(hour(seed, leak_bytes=64.0))

    assert "memory may grow by" in wrong


def test_the_warm_up_is_no_growth_however_steep():
    samples = hour(1, leak_bytes=0.0)
    cold = [one for one in samples if one.at_s < 600]

    assert cold[-1].rss_bytes - cold[0].rss_bytes > 4e6
    assert grows(samples)[1] == ""


def test_a_peak_that_comes_late_leaves_nothing_to_be_said():
    _, wrong = grows(hour(2, leak_bytes=0.0, late_peak=400))

    assert "50.0 min into 59.9" in wrong
    assert "run it longer" in wrong
