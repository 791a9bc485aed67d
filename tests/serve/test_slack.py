"""What a peak needed is given back once it is over, and not asked about at every look."""

import ctypes
from pathlib import Path

from polypod.serve.slack import EVERY_S, Slack, trim


def given(*looks: tuple[int, float]) -> list[float]:
    """When memory was given back, of looks at (requests in flight, time)."""
    times: list[float] = []
    slack = Slack(lambda: times.append(now_s))
    for in_flight, now_s in looks:
        slack.look(in_flight, now_s)
    return times


def test_memory_is_given_back_when_a_peak_is_over_and_once():
    assert given((100, 0.0), (26, 1.0), (25, 2.0), (0, 20.0)) == [2.0]


def test_a_small_peak_is_let_be():
    assert given((31, 0.0), (0, 1.0)) == []


def test_the_next_peak_is_given_back_too_but_not_within_ten_seconds():
    peaks = [(100, 0.0), (0, 1.0), (100, 2.0), (0, 3.0), (0, 1.0 + EVERY_S)]

    assert given(*peaks) == [1.0, 1.0 + EVERY_S]


def test_steady_traffic_is_never_interrupted():
    assert given(*((70 + n % 50, float(n)) for n in range(500))) == []


def test_free_memory_within_the_heap_goes_back_to_the_machine():
    """Every second kilobyte freed keeps the heap's top in use: only asking gives the pages between back."""

    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    held = [libc.malloc(20_000) for _ in range(5000)]
    for one in held:
        ctypes.memset(one, 1, 20_000)
    for n, one in enumerate(held):
        if n % 100 != 99:
            libc.free(one)
    before_bytes = resident_bytes()
    trim()

    assert before_bytes - resident_bytes() > 50_000_000
    for one in held[99::100]:
        libc.free(one)
