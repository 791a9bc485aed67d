#!/usr/bin/env bash
# Pool prefill-0-1, role prefill: vLLM on nvidia-h100-sxm, supported, 0.28.x
# Usage: bash prefill-0-1-prefill.sh [REPLICA]   REPLICA: 0 to 3, 0 where it is not given
set -eu

REPLICA=${1:-0}  # 4 of them in the plan
case "$REPLICA" in
  *[!0-9]*) echo "$REPLICA is no number of a replica" >&2; exit 2 ;;
esac
if [ "$REPLICA" -gt 3 ]; then echo "the plan has replicas 0 to 3" >&2; exit 2; fi
HOST="${HOST:-0.0.0.0}"
FIRST=$(( (8 + REPLICA * 2) % 8 ))  # 2 of a node's 8 devices
CUDA_VISIBLE_DEVICES=$(seq -s, "$FIRST" $(( FIRST + 2 - 1 )))
export CUDA_VISIBLE_DEVICES
MODEL="${MODEL:-Qwen/Qwen3-32B}"  # services.model of the plan
PORT=$(( 8100 + REPLICA ))
export VLLM_NIXL_SIDE_CHANNEL_HOST="${NODE_ADDR:?the address of this node, as the other role reaches it}"
export VLLM_NIXL_SIDE_CHANNEL_PORT=$(( 6600 + REPLICA * 1 ))

args=(
  "$MODEL"  # services.model
  --served-model-name Qwen/Qwen3-32B  # services.model
  --host "$HOST"  # of this node
  --port "$PORT"  # counted from the pool's first
  --dtype bfloat16  # precision.weights
  --kv-cache-dtype auto  # precision.kv = bf16
  --tensor-parallel-size 2  # layout.tp
  --max-model-len 40960  # services.context, the model's own limit or what the cache holds, whichever is least
  --max-num-seqs 1  # max_sequences = 1 over layout.dp = 1, rounded up
  --max-num-batched-tokens 4096  # max_step_tokens, of each data-parallel rank
  --gpu-memory-utilization 0.9  # memory_fraction of the calibration of nvidia-h100-sxm
  --kv-transfer-config '{"kv_connector": "NixlConnector", "kv_role": "kv_both"}'  # role prefill
)
exec vllm serve "${args[@]}"
