"""How much a key may still use this minute. Buckets that fill evenly and hold a minute's worth; in memory, of one node."""

from polypod.serve.keys import Grant
from polypod.serve.wire import Problem


class Meter:
    """What a key may still use: a bucket each of requests and tokens, that fill evenly, and hold a minute's worth."""

    def __init__(self, grant: Grant, now_s: float) -> None:
        self._requests = _Bucket("requests", grant.requests_per_minute, now_s)
        self._tokens = _Bucket("tokens", grant.tokens_per_minute, now_s)

    def take(self, tokens: int, now_s: float) -> Problem | None:
        requests, all_tokens = self._requests, self._tokens
        wait_s = requests.wait_s(1, now_s)
        if wait_s > 0:
            return _too_many(requests, 1, wait_s)
        wait_s = all_tokens.wait_s(tokens, now_s)
        if wait_s > 0:
            return _too_many(all_tokens, tokens, wait_s)
        requests.left -= 1
        all_tokens.left -= tokens
        return None

    def settle(self, tokens: int) -> None:
        """Give back what was set aside and not used; a negative number takes what was used beyond it."""
        self._tokens.left += tokens


class _Bucket:
    def __init__(self, unit: str, per_minute: int | None, now_s: float) -> None:
        self.unit = unit
        self.per_minute = per_minute
        self.left = float(per_minute or 0)  # negative after an answer longer than set aside
        self._at_s = now_s

    def wait_s(self, amount: int, now_s: float) -> float:
        """How long until so much is there; what is more than a minute's worth has to find the bucket full."""
        per_minute = self.per_minute
        if per_minute is None:
            return 0.0
        left = self.left + (now_s - self._at_s) * per_minute / 60
        self.left = left = left if left < per_minute else float(per_minute)
        self._at_s = now_s
        if left >= amount:
            return 0.0
        return max(0.0, (min(amount, per_minute) - left) * 60 / per_minute)


def _too_many(bucket: _Bucket, amount: int, wait_s: float) -> Problem:
    message = (
        f"this key may use {bucket.per_minute:,} {bucket.unit} a minute, has {max(0, int(bucket.left)):,} left and "
        f"asks for {amount:,}; come back in {wait_s:.1f} s"
    )
    return Problem(status=429, code="rate_limit_exceeded", message=message, retry_after_s=wait_s)
