"""What would fit, beside the last lines of an engine that could not load its model."""

from pathlib import Path

from polypod import units
from polypod.errors import EngineError, PolypodError
from polypod.plan.host import engine_model
from polypod.plan.predict import service_model
from polypod.plan.spec import Plan, Pool, Service
from polypod.serve.devices.cpu import HostCpu
from polypod.serve.engines import ENGINES
from polypod.serve.engines.facts import facts_of
from polypod.serve.memory import need_bytes


def fit_text(error: EngineError, plan: Plan, cpu: HostCpu) -> str:
    """The memory it takes beside what is free, the longest context that fits, and other engines that read the file; a line each."""
    found = [
        f"    {line}"
        for service in plan.services
        for pool in service.pools
        if f"replica {pool.name}-" in str(error)
        for line in _lines(service, pool, cpu)
    ]
    return "\n".join([str(error), "what would fit:", *found]) if found else str(error)


def _lines(service: Service, pool: Pool, cpu: HostCpu) -> list[str]:
    free_bytes = cpu.usable_memory_bytes
    need = need_bytes(pool)
    lines = []
    if need is not None:
        verdict = "enough" if need <= free_bytes else "too little"
        lines.append(f"{pool.name} takes about {units.show(need, 'bytes')} of memory, and {units.show(free_bytes, 'bytes')} are free: {verdict}")  # fmt: skip
    context = _context_tokens(service, pool, free_bytes)
    if context is not None:
        lines.append(f"beside its weights there is room for {context:,} tokens in each of {pool.max_sequences} sequences (--context, max_sequences in the plan)")  # fmt: skip
    others = _others(service, pool)
    if others:
        lines.append(f"{', '.join(others)} reads this format too (--engine {others[0]})")
    return lines


def _context_tokens(service: Service, pool: Pool, free_bytes: float) -> int | None:
    try:
        shape = engine_model(service_model(service), ENGINES[str(pool.engine)].kv_bytes_per_element)
    except PolypodError:  # the engine was not the only one that could not read it
        return None
    weights = Path(str(service.weights))
    held_bytes = weights.stat().st_size if weights.is_file() else 0
    room_bytes = free_bytes - held_bytes
    return max(0, int(room_bytes / max(shape.kv_bytes_per_token, 1.0) / pool.max_sequences))


def _others(service: Service, pool: Pool) -> list[str]:
    kind = "safetensors" if Path(str(service.weights)).is_dir() else "gguf"
    return [
        name
        for name, engine in ENGINES.items()
        if name != pool.engine
        and engine.version() is not None
        and (facts := facts_of(name)) is not None
        and kind in facts.formats
    ]
