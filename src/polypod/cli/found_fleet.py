"""`--on found`: the fleet is what this machine has."""

from typing import Final

from polypod.cli.asking import note
from polypod.errors import InputError
from polypod.plan.fleet_file import Fleet, fleet_of
from polypod.serve.devices.find import find_devices
from polypod.serve.devices.fleet import found_fleet

FOUND: Final = "found"


def fleet_named(text: str) -> Fleet:
    """What `--on` names; of this machine's devices, those left out and those that others use are said on stderr.

    Raises `InputError` where nothing was found that a plan can be made for, and what `fleet_of` raises.
    """
    if text != FOUND:
        return fleet_of(text)
    fleet = found_fleet(find_devices())
    for reason, names in fleet.left_out.items():
        note(f"left out: {', '.join(names)}: {reason}")
    for line in fleet.held:
        note(f"in use by others, and planned as free: {line}")
    if not fleet.sources:
        msg = "--on found: this machine has no accelerator that a plan can be made for; `polypod devices` says what was looked for"
        raise InputError(msg)
    return Fleet(sources=fleet.sources)
