"""The process of a llama.cpp replica: xllamacpp's own OpenAI-compatible server on a unix socket.

A prompt is computed whole, whatever came before it, so that it costs what its length says. `n_batch` bounds a step: a long
prompt holds up the other sequences for one chunk at a time. The KV cache is one for all sequences, because with one each
llama.cpp computes sequences in neighbouring slots together and all others one after another; what a finished sequence left
in it is cleared (`cache_idle_slots`, which wants a `cache_ram` to work, here too small to hold a prompt), because
attention would go over it.
"""

import signal
from collections.abc import Sequence

from polypod.serve.engines.child import ChildOptions, check_weights, settle
from polypod.serve.engines.llama_cpp import LLAMA_CPP
from polypod.serve.engines.spec import DEFAULT_SAMPLING


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until a signal ends the process."""
    options = settle(argv)
    check_weights(options.weights)
    server = _start(options)
    print(f"llama.cpp serves {options.model} on {options.socket}", flush=True)  # noqa: T201 - the child's log
    while server is not None:
        signal.pause()


def _start(options: ChildOptions) -> object:
    import xllamacpp  # its thread pools must see the cores this process is bound to

    params = xllamacpp.CommonParams()
    params.model.path = str(options.weights)
    params.model_alias = {options.model}
    params.hostnames = [str(options.socket)]  # a name that ends in .sock is a unix socket
    params.api_keys = [options.secret] if options.secret else []
    params.n_parallel = options.max_sequences
    params.n_ctx = options.context_tokens * options.max_sequences
    params.n_batch = params.n_ubatch = LLAMA_CPP.max_step_tokens
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = len(options.cores)
    params.kv_unified = True
    params.kv_unified_per_slot = options.context_tokens
    params.cache_prompt = False
    params.cache_idle_slots = True
    params.cache_ram_mib = 1
    if options.handover is not None:  # the driver says which slot holds what, and empties it
        params.slot_save_path = f"{options.handover}/"
        params.endpoint_slots = True
        params.cache_idle_slots = False
        params.cache_ram_mib = 0
    params.ctx_shift = False
    params.fit_params = False
    params.ui = False
    params.endpoint_metrics = True
    params.verbosity = 2  # warnings; one line per request would fill the disk
    params.sampling.temp = DEFAULT_SAMPLING.temperature
    params.sampling.top_k = DEFAULT_SAMPLING.top_k
    params.sampling.top_p = DEFAULT_SAMPLING.top_p
    params.sampling.min_p = DEFAULT_SAMPLING.min_p
    server: object = xllamacpp.Server(params)
    return server


if __name__ == "__main__":
    main()
