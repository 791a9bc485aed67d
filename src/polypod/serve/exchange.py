"""One request of one client, from its arrival to the last byte it gets.

The policy decides, an `Exchange` carries out: each `Dispatch` is an `Attempt` that runs by itself, and a `Retry`, a `Cancel`
or a `Reject` abandons it. An answer that has begun and cannot be finished ends with an error event, never silently.
"""

import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Final, assert_never

from polypod.policy.actions import (
    Cancel,
    Decode,
    Dispatch,
    Prefill,
    Reject,
    Retry,
    TransferKv,
)
from polypod.policy.events import ClientGone, RequestArrived, RequestFinished
from polypod.serve.apart import Apart
from polypod.serve.attempt import Attempt, Call, Desk, Starts
from polypod.serve.lasting import LastingAttempt
from polypod.serve.loop import ForRequest
from polypod.serve.made_up import MadeUp
from polypod.serve.reply import Answer, Reply, refusal
from polypod.serve.steps import Steps
from polypod.serve.transcript import Transcript
from polypod.serve.wire import Problem

Work = Callable[[], Coroutine[None, None, None]]

_LOG: Final = logging.getLogger("polypod.serve")
_BUG: Final = Problem(
    status=500, code="internal_error", message="the node failed at this request; its log says how"
)


class Exchange:
    """Starts with `start`, takes the policy's actions, and is left with `leave`. While it is open, it is one of `among`."""

    def __init__(self, call: Call, desk: Desk, reply: Reply, among: "set[Exchange]") -> None:
        self._call = call
        self._desk = desk
        self._reply = reply
        self._among = among
        self._model = desk.metrics.label(call.chat.model)
        self._request = 0
        self._arrived_s = 0.0
        self._number = 0  # of the latest attempt
        self._attempt: Steps | None = None  # while it can be abandoned
        self._apart: Apart | MadeUp | None = (
            None  # once prefill and decode are on replicas of their own
        )
        self._held: Answer | None = None  # what the latest engine answered in one piece
        mode = call.opted.mode
        self._transcript = None if mode == "off" else Transcript(call.opted)
        self._is_over = False  # decided; at most the last bytes are still on their way

    def start(self) -> None:
        """Tell the policy of the request."""
        chat, driver = self._call.chat, self._desk.driver
        transcript = self._transcript
        count = None if transcript is None else (lambda: transcript.tokens)
        self._request = driver.open(self.take, count)
        self._among.add(self)
        self._arrived_s = driver.now_s()
        self._desk.metrics.request_began(self._model)
        driver.tell(
            RequestArrived(
                at_s=self._arrived_s,
                request=self._request,
                model=chat.model,
                input_tokens=chat.input_tokens,
                input_is_exact=False,
                is_streamed=bool(chat.stream),
                max_output_tokens=chat.max_output_tokens,
                tenant=self._call.lease.principal.tenant,
                priority=self._call.lease.principal.grant.priority,
                prefix_hashes=self._call.prefix_hashes,
                only_replica=self._call.only_replica,
                continuation=self._call.opted.mode,
                session=self._call.session,
            )
        )

    def take(self, action: ForRequest) -> None:
        """Carry out one action of the policy."""
        match action:
            case Dispatch():
                self._begin(action, partial(self._run, action, self._call))
            case Prefill():
                self._apart = self._apart or self._new_apart(action)
                self._begin(action, partial(self._prefill, action, self._apart))
            case TransferKv():
                assert self._apart is not None, f"{action} without a prefill"
                self._begin(action, partial(self._transfer, action, self._apart))
            case Decode():
                assert self._apart is not None, f"{action} without a prefill"
                self._begin(action, partial(self._run, action, self._apart.answer()))
            case Retry():
                self._retry(action)
            case Cancel():
                self._abandon(action.attempt)
            case Reject():
                self._abandon()
                self._refuse(_problem(action), self._held if action.from_engine else None)
            case _:
                assert_never(action)

    def _retry(self, action: Retry) -> None:
        self._desk.metrics.retried(action.reason)
        if self._reply.has_begun:
            self._desk.metrics.continued(self._call.opted.mode)
        self._abandon(action.attempt)

    def stop(self, problem: Problem) -> None:
        """End it from our side, in words: the node is stopping."""
        if not self._is_over:
            self._give_up()
            self._refuse(problem)

    def leave(self) -> None:
        """The client has its answer, or has gone away."""
        if not self._is_over:
            self._give_up()
            self._decide("client_gone")

    def _begin(self, action: Starts | TransferKv, work: Work) -> None:
        assert self._attempt is None, f"{action} while another attempt is running"
        self._number = action.attempt
        self._reply.route(action.replica, action.attempt)
        self._attempt = attempt = Steps(self._carry(work))
        attempt.start()

    async def _carry(self, work: Work) -> None:
        """An attempt that ends by an exception is our own fault; its client and the policy are told like any others."""
        try:
            await work()
        except Exception as error:
            _LOG.error("an attempt failed", exc_info=error)
            self.stop(_BUG)

    def _new_apart(self, action: Prefill) -> Apart | MadeUp:
        endpoint = self._desk.driver.endpoint(action.replica, action.epoch)
        is_made_up = endpoint is not None and endpoint.handover == "made_up"
        return (MadeUp if is_made_up else Apart)(call=self._call, desk=self._desk)

    async def _prefill(self, action: Prefill, apart: Apart | MadeUp) -> None:
        ending = await apart.prefill(action, self._reply)
        self._attempt, self._held = None, apart.held
        self._desk.driver.tell(ending)

    async def _transfer(self, action: TransferKv, apart: Apart | MadeUp) -> None:
        ending = await apart.transfer(action)
        self._attempt = None
        self._desk.driver.tell(ending)

    async def _run(self, action: Starts, call: Call) -> None:
        attempt = self._new_attempt(action, call)
        ending = await attempt.run(self._reply)
        self._attempt = None  # it has ended by itself; what the policy answers must not cancel it
        self._held = attempt.held
        self._desk.driver.tell(ending)
        if isinstance(ending, RequestFinished):
            self._call.lease.used(ending.input_tokens, ending.output_tokens)
            self._decide("200")
            self._reply.answer(attempt.held) if attempt.held else self._reply.end()

    def _new_attempt(self, action: Starts, call: Call) -> Attempt:
        arrived_s, transcript = self._arrived_s, self._transcript
        if transcript is None:
            return Attempt(action, call, self._desk, arrived_s=arrived_s)
        return LastingAttempt(action, call, self._desk, arrived_s=arrived_s, transcript=transcript)

    def _refuse(self, problem: Problem, held: Answer | None = None) -> None:
        answer = held or refusal(problem)
        if self._reply.has_begun:
            self._decide("broken_stream")
            self._reply.end(problem.event)
        else:
            self._call.lease.refused()
            self._decide(str(answer.status))
            self._reply.answer(answer)

    def _give_up(self) -> None:
        driver = self._desk.driver
        driver.tell(ClientGone(at_s=driver.now_s(), request=self._request))
        self._abandon()

    def _abandon(self, attempt: int | None = None) -> None:
        """Stop that attempt, if it is the one running; its connection is closed at once."""
        if self._attempt is not None and attempt in (None, self._number):
            self._attempt.cancel()
            self._attempt = None
            self._leave_apart()

    def _leave_apart(self) -> None:
        if self._apart is not None:
            self._apart.leave()

    def _decide(self, status: str) -> None:
        self._is_over = True
        self._leave_apart()
        self._among.discard(self)
        self._call.lease.end()
        self._desk.driver.close(self._request)
        self._desk.metrics.request_ended(self._model, status)


def _problem(reject: Reject) -> Problem:
    return Problem(
        status=reject.status,
        code=reject.code,
        message=reject.message,
        param=reject.param,
        retry_after_s=reject.retry_after_s,
    )
