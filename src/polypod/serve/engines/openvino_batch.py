"""OpenVINO's continuous batching, driven step by step from the event loop.

The pipeline holds Python's interpreter lock during a step, so a thread of its own would gain nothing and would deliver
each token a step late. One loop does both: a step, then a few turns for sockets, then the next step. Every sequence that
waits joins the next step, and leaves after its last one.
"""

import asyncio
import secrets
from collections.abc import Sequence
from typing import Any, Final, Protocol, TypeAlias

import msgspec

from polypod.serve.engines.chat import NEW, ChatRequest, Continued
from polypod.serve.engines.child import ChildOptions
from polypod.serve.engines.generation import Written
from polypod.serve.engines.openvino import OPENVINO
from polypod.serve.engines.text import Decode

Library: TypeAlias = Any  # its objects carry no types that a checker can follow

_KV_BLOCK_TOKENS: Final = 32  # of its CPU plug-in
_TURNS_PER_STEP: Final = 4  # enough for a request's bytes to become a request


class Output(Protocol):
    """Tokens of one sequence, as the library hands them out."""

    generated_ids: Sequence[int]
    finish_reason: Any  # an enum: NONE, STOP, LENGTH


class Handle(Protocol):
    """The library's hold on one request."""

    def can_read(self) -> bool: ...
    def read(self) -> dict[int, Output]: ...
    def cancel(self) -> None: ...
    def get_status(self) -> Library: ...


class Generation(Written):
    """One answer in the making, with the library's hold on it."""

    def __init__(
        self,
        handle: Handle,
        decode: Decode,
        stops: Sequence[str],
        prompt_tokens: int,
        *,
        before: Sequence[int] = (),
        shows_ids: bool = False,
    ) -> None:
        super().__init__(decode, stops, prompt_tokens, before=before, shows_ids=shows_ids)
        self._handle = handle
        self._is_cancelled = False

    def cancel(self) -> None:
        """Stop computing; nobody reads on."""
        self._is_cancelled = True
        self._handle.cancel()

    def collect(self) -> bool:
        """Take in what the last step made; True once the answer is complete."""
        if self._is_cancelled:
            return True
        if not self._handle.can_read():
            self._check_running()
            return False
        finished = False
        for output in self._handle.read().values():
            for token in output.generated_ids:
                finished = finished or self._take(token)
            if not finished and output.finish_reason.name in ("STOP", "LENGTH"):
                self.finish("stop" if output.finish_reason.name == "STOP" else "length")
                finished = True
        return finished

    def _check_running(self) -> None:
        """A request without a new token waits its turn, or is a part of a long prompt; anything else is a fault."""
        status = self._handle.get_status().name
        if status != "RUNNING":
            msg = f"the pipeline dropped a request of {self.prompt_tokens} prompt tokens: {status}"
            raise RuntimeError(msg)

    def _take(self, token: int) -> bool:
        has_stopped = self.take(token)
        if has_stopped:
            self._handle.cancel()
        return has_stopped


class Batch:
    """The sequences running together on one pipeline."""

    def __init__(self, options: ChildOptions) -> None:
        self.context_tokens = options.context_tokens
        self.max_sequences = options.max_sequences
        self.prompt_tokens_total = 0
        self.output_tokens_total = 0
        self.steps_total = 0
        self._running: list[Generation] = []
        self._next_id = 0
        self._work = asyncio.Event()
        self._pipeline = _load(options)
        self._tokeniser = self._pipeline.get_tokenizer()

    @property
    def sequences(self) -> int:
        """Running or waiting for a place."""
        return len(self._running)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of some tokens, special ones left out."""
        return str(self._tokeniser.decode(list(ids), skip_special_tokens=True)) if ids else ""

    def submit(self, request: ChatRequest, given: Continued = NEW) -> Generation:
        """Let a request join the next step, after what of its answer is given. Raises `ProblemError` (400) where it does not fit."""
        turns = [message.turn for message in request.messages]
        prompt = self._tokeniser.apply_chat_template(turns, add_generation_prompt=True)
        ids = self._tokeniser.encode(prompt + given.text, add_special_tokens=False).input_ids
        ids = _followed_by(ids, given.ids)
        prompt_tokens = int(ids.shape[1])
        new_tokens = request.max_new_tokens(prompt_tokens, self.context_tokens)
        self._next_id += 1
        handle = self._pipeline.add_request(self._next_id, ids, self._settings(request, new_tokens))
        before = ids.data[0].tolist() if given.text or given.ids else ()
        generation = Generation(
            handle,
            self.decode,
            request.stops,
            prompt_tokens,
            before=before,
            shows_ids=given.shows_ids,
        )
        self._running.append(generation)
        self.prompt_tokens_total += prompt_tokens
        self._work.set()
        return generation

    async def run(self) -> None:
        """Step for as long as the process lives. A step that fails ends it: the supervisor starts a new one."""
        while True:
            self._work.clear()
            await self._work.wait()
            while self._pipeline.has_non_finished_requests():
                self._step()
                for _ in range(_TURNS_PER_STEP):
                    await asyncio.sleep(0)

    def warm_up(self) -> None:
        """Make the library compile and allocate before the first request pays for it."""
        body = b'{"model": "", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}'
        self.submit(msgspec.json.decode(body, type=ChatRequest))
        while self._pipeline.has_non_finished_requests():
            self._step()
        self.prompt_tokens_total = self.output_tokens_total = self.steps_total = 0

    def _step(self) -> None:
        self._pipeline.step()
        self.steps_total += 1
        before = sum(generation.output_tokens for generation in self._running)
        finished = [generation for generation in self._running if generation.collect()]
        self.output_tokens_total += sum(g.output_tokens for g in self._running) - before
        for generation in finished:
            self._running.remove(generation)

    def _settings(self, request: ChatRequest, new_tokens: int) -> Library:
        import openvino_genai

        settings = openvino_genai.GenerationConfig(
            max_new_tokens=new_tokens, apply_chat_template=False
        )
        settings.set_eos_token_id(self._tokeniser.get_eos_token_id())
        settings.stop_token_ids = self._pipeline.get_config().stop_token_ids
        settings.ignore_eos = bool(request.ignore_eos)
        settings.frequency_penalty = request.frequency_penalty or 0.0
        settings.presence_penalty = request.presence_penalty or 0.0
        settings.repetition_penalty = request.repeat_penalty or 1.0
        if not request.greedy:
            settings.do_sample = True
            settings.temperature = request.sampling("temperature")
            settings.top_p = request.sampling("top_p")
            settings.top_k = int(request.sampling("top_k")) or (1 << 62)
            settings.min_p = request.sampling("min_p")
            settings.rng_seed = (
                secrets.randbits(31) if request.seed is None else request.seed % (1 << 31)
            )
        return settings


def _followed_by(ids: Library, more: Sequence[int]) -> Library:
    """A prompt's tokens with these behind them."""
    if not more:
        return ids
    import numpy as np
    import openvino

    return openvino.Tensor(np.array([[*ids.data[0].tolist(), *more]], dtype=np.int64))


def _load(options: ChildOptions) -> Library:
    import openvino_genai  # its thread pools must see the cores this process is bound to

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.max_num_seqs = options.max_sequences
    scheduler.max_num_batched_tokens = OPENVINO.max_step_tokens
    blocks = -(-options.context_tokens // _KV_BLOCK_TOKENS)
    scheduler.num_kv_blocks = (
        options.max_sequences * blocks
    )  # room for every sequence: nobody is preempted
    scheduler.enable_prefix_caching = (
        False  # a prompt costs what its length says, whatever came before it
    )
    threads = {"INFERENCE_NUM_THREADS": len(options.cores)}
    return openvino_genai.ContinuousBatchingPipeline(
        str(options.weights), scheduler, "CPU", threads
    )
