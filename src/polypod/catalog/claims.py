"""Holds what a source says of a whole pod against the sum of the parts it is made of."""

from typing import assert_never

from polypod.catalog.schema import Accelerator, Claim, Fact, Pod


def sum_of_parts(claim: Claim, pod: Pod, accelerator: Accelerator | None) -> float | None:
    """The claimed quantity, added up from the pod's parts; None where a part is unknown.

    384 packages of 752 TFLOPS are 289 PFLOPS, whatever a headline says.
    """
    each = None if accelerator is None else _of_one(claim, pod, accelerator)
    return None if each is None else each * pod.accelerators


def _of_one(claim: Claim, pod: Pod, accelerator: Accelerator) -> float | None:
    match claim.quantity:
        case "flops_per_s":
            return _value(accelerator.peak_flops_per_s.get(claim.dtype) if claim.dtype else None)
        case "memory_bytes":
            return _value(accelerator.memory_bytes)
        case "memory_bytes_per_s":
            return _value(accelerator.memory_bytes_per_s)
        case "link_bytes_per_s_both_ways":
            ports = [tier.bytes_per_s for tier in pod.tiers if tier.ranks is not None]
            widest = ports[-1] if ports else None
            return None if widest is None else 2 * widest.value * accelerator.ranks
        case _:
            assert_never(claim.quantity)


def _value(fact: Fact | None) -> float | None:
    return None if fact is None else fact.value
