"""AMD NPUs (XDNA): the driver amdxdna makes them devices of the class accel, and they compute in the host's memory."""

from functools import partial
from typing import Final

from polypod.serve.devices.bound import bound_devices
from polypod.serve.devices.probe import Asked

PROBE: Final = Asked(kernel=partial(bound_devices, driver="amdxdna"))
