#!/usr/bin/env bash
# The proxy that sends a request to a prefill replica, then to a decode replica: toy_proxy_server.py, in tests/v1/kv_connector/nixl_integration of vLLM.
# It shows how the two are joined, and is no production router.
set -eu

PROXY="${PROXY:?the path of toy_proxy_server.py}"
PREFILL_HOSTS="${PREFILL_HOSTS:?addresses of the first nodes of the 4 prefill replicas, in order}"
DECODE_HOSTS="${DECODE_HOSTS:?addresses of the first nodes of the 1 decode replicas, in order}"

# shellcheck disable=SC2086  # lists of addresses, one argument each
exec python3 "$PROXY" \
  --host "${HOST:-0.0.0.0}" \
  --port "${PORT:-1999}" \
  --prefiller-hosts $PREFILL_HOSTS \
  --prefiller-ports 8100 8101 8102 8103 \
  --decoder-hosts $DECODE_HOSTS \
  --decoder-ports 8000
