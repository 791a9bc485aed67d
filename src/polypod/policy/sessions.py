"""Which replica a session's requests went to last, so that the next one may go there too.

A preference, never a rule: the router stays with it while the request would end there not much later than at the best place.
"""

from collections import OrderedDict


class Sessions:
    """The latest sessions, so many at most; 0 remembers none.

    >>> sessions = Sessions(most=2)
    >>> for session, replica in ((1, "a"), (2, "b"), (1, "b"), (3, "a")):
    ...     sessions.went(session, replica)
    >>> [sessions.last(session) for session in (1, 2, 3)]
    ['b', None, 'a']
    """

    def __init__(self, *, most: int) -> None:
        self._most = most
        self._last: OrderedDict[int, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._last)

    def last(self, session: int) -> str | None:
        """The replica, by name; None where nothing is known."""
        return self._last.get(session)

    def went(self, session: int, replica: str) -> None:
        """The session's latest request went there."""
        if not self._most:
            return
        self._last[session] = replica
        self._last.move_to_end(session)
        if len(self._last) > self._most:
            self._last.popitem(last=False)
