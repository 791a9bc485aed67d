"""The structs of `types.h` that describe one engine, as numpy sees them."""

from typing import Any, Final

import numpy as np


def struct(whole: str, real: str, order: str | None = None) -> np.dtype[Any]:
    """Eight bytes a field: whole numbers and floats, in the order they stand in."""
    kinds = dict.fromkeys(whole.split(), "i8") | dict.fromkeys(real.split(), "f8")
    names = order.split() if order else list(kinds)
    return np.dtype([(name, kinds[name]) for name in names])


KIND: Final = struct(
    "first_knot knots data_ranks stages budget",
    "kv_token_s pair_s sequence_s",
    "first_knot knots kv_token_s pair_s sequence_s data_ranks stages budget",
)
REPLICA: Final = struct(
    "model pool kind played_kind context_tokens kv_capacity_tokens max_sequences max_step_tokens exclusive_prefill schedules_ahead whole_prompts balance_steps has_power cap "
    "role pool_bit to_pools hbm_host_tokens host_blocks remote remote_blocks",
    "tokens_per_step drafts draft_share prefix_hits slowdown idle_w prompt_w decode_w kv_token_bytes kv_link_bytes_per_s kv_link_latency_s "
    "imbalance_cv block_bytes host_bytes_per_s remote_bytes_per_s remote_latency_s port_bytes_per_s",
    "model pool kind played_kind context_tokens kv_capacity_tokens max_sequences max_step_tokens tokens_per_step drafts draft_share "
    "prefix_hits exclusive_prefill schedules_ahead whole_prompts balance_steps slowdown has_power cap idle_w prompt_w decode_w "
    "role pool_bit to_pools kv_token_bytes kv_link_bytes_per_s kv_link_latency_s imbalance_cv "
    "hbm_host_tokens host_blocks remote remote_blocks block_bytes host_bytes_per_s remote_bytes_per_s remote_latency_s port_bytes_per_s",
)
TRIAL: Final = struct("prompt_tokens output_tokens warm allowed role", "ttft_s tpot_s way_s")
