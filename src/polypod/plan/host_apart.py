"""A plan for this machine's cores with prompts on one half of them and answers on the other."""

from collections.abc import Sequence

import msgspec

from polypod.cost.cpu import handover_rates
from polypod.errors import InputError
from polypod.plan.host import LocalEngine
from polypod.plan.spec import Plan, Pool


def that_hand_over(engines: Sequence[LocalEngine]) -> list[LocalEngine]:
    """Of these engines, the first whose processes hand caches to each other.

    Raises `InputError` where none does.
    """
    able = [engine for engine in engines if handover_rates(engine.name) is not None]
    if not able:
        names = " and ".join(engine.name for engine in engines) or "no engine"
        msg = f"prefill and decode apart need an engine that hands caches on, which is llama.cpp, and there is {names}; pip install 'polypod[llama-cpp]'"
        raise InputError(msg)
    return able[:1]


def host_apart(plan: Plan) -> Plan:
    """The same plan with its first pool for prompts, and the others for what follows.

    Raises `InputError` where there is one pool only.
    """
    (service,) = plan.services
    if len(service.pools) < 2:
        msg = "prefill and decode apart need two groups of cores, and this process may use one core; leave --apart out"
        raise InputError(msg)
    pools = tuple(_phase(pool, number) for number, pool in enumerate(service.pools))
    return msgspec.structs.replace(plan, services=(msgspec.structs.replace(service, pools=pools),))


def _phase(pool: Pool, number: int) -> Pool:
    role = "decode" if number else "prefill"
    name = f"{role}-{pool.on}" if number > 1 else role
    return msgspec.structs.replace(pool, role=role, name=name)
