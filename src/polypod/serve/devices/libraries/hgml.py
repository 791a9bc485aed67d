"""T-Head's hgml: NVML's functions under a prefix of its own (bound so in gpustack/runtime, Apache-2.0, read for facts)."""

import ctypes

from polypod.serve.devices.found import Reading
from polypod.serve.devices.libraries.nvml import read_prefixed


def read(library: ctypes.CDLL) -> Reading:
    """All devices."""
    return read_prefixed(library, "hgml")
