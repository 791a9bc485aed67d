"""Transformers' `generate`, one thread for each running sequence, streamed token by token to the event loop.

Threads share the model, whose forward pass keeps nothing; each sequence has a cache of its own, so that one never changes another's
numbers. They do not batch: eight sequences take as long as one after another. No code of a checkpoint is ever run, and only safetensors
and GGUF are read.
"""

import asyncio
import secrets
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from polypod.serve.engines.chat import NEW, ChatRequest, Continued, FinishReason, refused
from polypod.serve.engines.child import ChildOptions
from polypod.serve.engines.generation import Written
from polypod.serve.engines.text import Decode

Library: TypeAlias = Any  # its objects carry no types that a checker can follow


class Generation(Written):
    """One answer, computed in a thread."""

    def __init__(self, decode: Decode, stops: Sequence[str], prompt_tokens: int) -> None:
        super().__init__(decode, stops, prompt_tokens)
        self.stopping = threading.Event()  # read by the thread after every token

    def cancel(self) -> None:
        """Stop computing after the token at hand; nobody reads on."""
        self.stopping.set()


class Batch:
    """The sequences that run on one model."""

    def __init__(self, options: ChildOptions, loop: asyncio.AbstractEventLoop) -> None:
        import torch  # its thread pools must see the cores this process is bound to

        torch.set_num_threads(len(options.cores))
        torch.set_grad_enabled(mode=False)
        self.context_tokens = options.context_tokens
        self.max_sequences = options.max_sequences
        self.prompt_tokens_total = 0
        self.output_tokens_total = 0
        self._running: set[Generation] = set()
        self._loop = loop
        self._failed: asyncio.Future[None] = loop.create_future()
        self._threads = ThreadPoolExecutor(options.max_sequences, thread_name_prefix="generate")
        self._model, self._tokeniser = load(options.weights)
        config = self._model.generation_config
        ends = config.eos_token_id
        self._ends = set(ends if isinstance(ends, list) else [ends]) - {None}
        self._ends |= {self._tokeniser.eos_token_id} - {None}

    @property
    def sequences(self) -> int:
        """Running or waiting for a thread."""
        return len(self._running)

    @property
    def steps_total(self) -> int:
        """A step is one sequence's token."""
        return self.output_tokens_total

    def decode(self, ids: Sequence[int]) -> str:
        """Text of some tokens, special ones left out."""
        return str(self._tokeniser.decode(list(ids), skip_special_tokens=True)) if ids else ""

    def submit(self, request: ChatRequest, given: Continued = NEW) -> Generation:
        """Let a request run. Raises `ProblemError` (400) where it does not fit, or goes on with an answer."""
        if given != NEW:
            msg = "this engine begins answers, and goes on with none"
            raise refused(msg, code="unsupported_parameter", param="continue_final_message")
        for name in ("frequency_penalty", "presence_penalty"):
            if getattr(request, name):
                msg = f"Transformers has no {name}; leave it out, or say repeat_penalty"
                raise refused(msg, code="unsupported_parameter", param=name)
        turns = [message.turn for message in request.messages]
        text = self._tokeniser.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=False
        )
        ids = self._tokeniser(text, add_special_tokens=False, return_tensors="pt")
        prompt_tokens = int(ids["input_ids"].shape[1])
        new_tokens = request.max_new_tokens(prompt_tokens, self.context_tokens)
        generation = Generation(self.decode, request.stops, prompt_tokens)
        self._running.add(generation)
        self.prompt_tokens_total += prompt_tokens
        work = self._loop.run_in_executor(
            self._threads,
            self._generate,
            generation,
            dict(ids),
            self._settings(request, new_tokens),
        )
        work.add_done_callback(lambda done: self._done(generation, done))
        return generation

    async def run(self) -> None:
        """Wait for a computation that fails, which ends the process: the supervisor starts a new one."""
        await self._failed

    def warm_up(self) -> None:
        """Compute two tokens before the first request pays for what is allocated once."""
        ids = self._tokeniser("Hello", return_tensors="pt")
        self._model.generate(**ids, max_new_tokens=2, do_sample=False)

    def _done(self, generation: Generation, done: "asyncio.Future[FinishReason]") -> None:
        """In the loop, after the last token."""
        self._running.discard(generation)
        error = done.exception()
        if error is None:
            generation.finish(done.result())
        elif not self._failed.done():
            self._failed.set_exception(error)

    def _generate(
        self, generation: Generation, ids: dict[str, Library], settings: dict[str, Any]
    ) -> FinishReason:
        """In a thread."""
        ends = set() if settings.pop("ignore_eos") else self._ends
        streamer = _Streamer(ends, partial(self._hand_on, generation))
        seed = settings.pop("seed", None)
        if seed is not None:
            import torch

            torch.manual_seed(seed)
        if generation.stopping.is_set():  # while it waited for a thread
            return "stop"
        self._model.generate(
            **ids,
            **settings,
            eos_token_id=sorted(ends) or None,
            pad_token_id=self._tokeniser.pad_token_id or 0,
            streamer=streamer,
            stopping_criteria=[lambda *_args, **_named: generation.stopping.is_set()],
        )
        return "stop" if streamer.has_ended or generation.stopping.is_set() else "length"

    def _hand_on(self, generation: Generation, token: int) -> None:
        """In a thread."""
        self._loop.call_soon_threadsafe(self._taken, generation, token)

    def _taken(self, generation: Generation, token: int) -> None:
        """In the loop, for each token. After a stop string the thread's last tokens are no part of the answer."""
        if not generation.stopping.is_set():
            self.output_tokens_total += 1
            if generation.take(token):
                generation.stopping.set()

    def _settings(self, request: ChatRequest, new_tokens: int) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "max_new_tokens": new_tokens,
            "do_sample": not request.greedy,
            "repetition_penalty": request.repeat_penalty or 1.0,
            "ignore_eos": bool(request.ignore_eos),
        }
        if not request.greedy:
            settings |= {
                "temperature": request.sampling("temperature"),
                "top_k": int(request.sampling("top_k")),
                "top_p": request.sampling("top_p"),
                "min_p": request.sampling("min_p"),
                "seed": secrets.randbits(31) if request.seed is None else request.seed % (1 << 31),
            }
        return settings


class _Streamer:
    """What `generate` calls with the prompt first, then with each token; hands tokens on to the event loop."""

    def __init__(self, ends: set[int], hand_on: Callable[[int], None]) -> None:
        self.has_ended = False
        self._ends = ends
        self._hand_on = hand_on
        self._is_prompt = True

    def put(self, ids: Library) -> None:
        if self._is_prompt:
            self._is_prompt = False
            return
        token = int(ids[0])
        self.has_ended = token in self._ends
        self._hand_on(token)

    def end(self) -> None:
        """Nothing is held back."""


def load(weights: Path) -> tuple[Library, Library]:
    """The model in fp32 and its tokeniser, from a folder or a GGUF file of this machine.

    Ends the process with the reason where weights are in a format that may hold code.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = {"pretrained_model_name_or_path": str(weights)}
    if weights.is_file():
        place = {"pretrained_model_name_or_path": str(weights.parent), "gguf_file": weights.name}
    elif not list(weights.glob("*.safetensors")):
        msg = f"{weights} has no *.safetensors; other formats may hold code and are not read"
        raise SystemExit(msg)
    kept: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    tokeniser = AutoTokenizer.from_pretrained(**place, **kept)
    model = AutoModelForCausalLM.from_pretrained(
        **place, **kept, dtype=torch.float32, use_safetensors=True
    )
    return model.eval(), tokeniser
