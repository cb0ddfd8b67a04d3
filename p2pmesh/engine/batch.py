"""One model file and one context of llama.cpp: many sequences, decoded in one batch.

The only import of llama_cpp. It knows tokens, positions and sequences, and nothing of jobs: who gets a
sequence, and what a failed decode means, is decided in `engine.schedule`. Not thread-safe: one thread owns a
`Model` and its `Context`, and a hostile file may make llama.cpp abort the process. Hence the child.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2pmesh.errors import ModelLoadError
from p2pmesh.query import LOGPROB_MIN, SPELLED_BYTES_MAX, Options, TokenLogprobs

# Both are read once, when the library is loaded. A spinning OpenMP barrier is five to ten times slower when
# cores are shared (measured); without the second an abort starts a debugger to print a stack.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GGML_NO_BACKTRACE", "1")

import llama_cpp as llama

LIBRARY = llama.llama_cpp._lib
"""llama.cpp itself, for what the package has no names for."""
PENALTY_TOKENS = 64
"""Tokens of the answer that penalties look back on. As llama.cpp's own default."""
TOP_K = 64
"""Tokens a draw chooses among. Cutting to a few before top-p makes it 50 times cheaper (measured)."""
EMBED_TOKENS_MAX = 512
"""Most tokens of one batch of texts. One batch is one physical batch, as attention to both sides needs."""

Tokens = NDArray[np.int32]
_LOG_WARN, _LOG_ERROR = 3, 4
_complaint = ""  # llama.cpp's last one
_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
"""llama_token_data."""


def _log(level: int, text: bytes, _: object) -> None:
    """Print warnings when asked to. The package's own callback fails on bytes that are not UTF-8."""
    global _complaint  # as its callback is
    if level == _LOG_ERROR:
        _complaint = text.decode("utf-8", "replace").strip()
    if level >= _LOG_WARN and "P2PMESH_ENGINE_LOG" in os.environ:
        sys.stderr.write(text.decode("utf-8", "replace"))


_log_callback = llama.llama_log_callback(_log)  # kept here: llama.cpp holds a bare pointer to it
llama.llama_log_set(_log_callback, ctypes.c_void_p(0))


class Model:
    """The weights and the vocabulary of a GGUF file.

    Raises `ModelLoadError` when llama.cpp refuses the file. A hostile file may abort the process instead.
    """

    def __init__(self, path: str, gpu_layers: int = 0, adapter: str = "") -> None:
        llama.llama_backend_init()
        self.gpu_layers = gpu_layers
        params = llama.llama_model_default_params()
        params.n_gpu_layers = gpu_layers if gpu_layers >= 0 else 2**31 - 1
        self.handle = llama.llama_model_load_from_file(os.fsencode(path), params)
        if not self.handle:
            raise ModelLoadError(f"llama.cpp cannot load {os.path.basename(path)}")
        self.adapter: Any = None
        """Laid over it in each of its contexts. It is freed with the model."""
        if adapter:
            self.adapter = llama.llama_adapter_lora_init(self.handle, os.fsencode(adapter))
            if not self.adapter:
                raise ModelLoadError(
                    f"llama.cpp cannot lay {os.path.basename(adapter)} over {os.path.basename(path)}: "
                    "was it trained on that model?"
                )
        self.vocab = llama.llama_model_get_vocab(self.handle)
        self.train_tokens: int = llama.llama_model_n_ctx_train(self.handle)
        self.dimensions: int = llama.llama_model_n_embd(self.handle)
        self.add_bos: bool = llama.llama_vocab_get_add_bos(self.vocab)
        self.tokens: int = llama.llama_vocab_n_tokens(self.vocab)
        """Size of its vocabulary."""
        self.bos: int = llama.llama_vocab_bos(self.vocab)
        self.eos: int = llama.llama_vocab_eos(self.vocab)
        self.sliceable = not (
            llama.llama_model_is_recurrent(self.handle)
            or llama.llama_model_is_hybrid(self.handle)
            or llama.llama_model_n_swa(self.handle) > 0
        )
        """Whether what `Context.save` returned may be cut to a beginning once it is put back: not where it is
        one state, and not where some layers look back a window only, for only the last window is saved."""
        self._pieces: dict[int, bytes] = {}

    @property
    def template(self) -> str | None:
        """The chat template out of the file, or None."""
        raw = llama.llama_model_chat_template(self.handle, None)
        return raw.decode("utf-8", "replace") if raw else None

    def tokenize(self, text: str, *, control: bool, specials: bool = False) -> list[int]:
        """Return the tokens of `text`.

        `control` makes "<|im_end|>" one control token instead of the characters it is; `specials` adds what
        the model wants around a text (an embedder's [CLS] and [SEP]).
        """
        raw = text.encode("utf-8", "replace")
        room = len(raw) + 16
        while True:
            buffer = (llama.llama_token * room)()
            count = llama.llama_tokenize(self.vocab, raw, len(raw), buffer, room, specials, control)
            if count >= 0:
                return list(buffer[:count])
            room = -count

    def piece(self, token: int) -> bytes:
        """Return the bytes `token` spells; b"" for a control token."""
        if token not in self._pieces:
            self._pieces[token] = self._spell(token, special=False)
        return self._pieces[token]

    def control_text(self, token: int) -> str:
        """Return a control token as templates write it; "" where there is none."""
        return self._spell(token, special=True).decode("utf-8", "replace") if token >= 0 else ""

    def _spell(self, token: int, *, special: bool) -> bytes:
        room = -llama.llama_token_to_piece(self.vocab, token, b"", 0, 0, special)
        buffer = ctypes.create_string_buffer(room)
        llama.llama_token_to_piece(self.vocab, token, buffer, room, 0, special)
        return buffer.raw

    def ends(self, token: int) -> bool:
        """Return whether `token` ends an answer."""
        return bool(llama.llama_vocab_is_eog(self.vocab, token))

    @cached_property
    def silent(self) -> Tokens:
        """The tokens that neither write nor end. To find them among 49 152 takes 0.12 s, once (measured)."""
        silent = (token for token in range(self.tokens) if not (self.piece(token) or self.ends(token)))
        return np.fromiter(silent, np.int32)

    def close(self) -> None:
        """Free the weights. Close every context of it first."""
        if self.handle:
            llama.llama_model_free(self.handle)
        self.handle = None


class Sampler:
    """How one answer's tokens are chosen: the likeliest, or drawn from the likeliest, within a grammar.

    A chain of llama.cpp's samplers in its own order: bias, penalties, top-k, top-p, min-p, temperature, dice.
    The grammar stands beside it, as llama.cpp's own programs have it: the chain chooses, and only where the
    grammar forbids its choice does it choose again, among all that is legal, so that no cut to the likeliest
    leaves it without. To ask about one token takes 14 to 200 us, about all 49 152 takes 6 to 95 ms (measured,
    from free JSON to 500 optional properties), and the chain alone 0.1 ms.
    """

    def __init__(
        self, model: Model, options: Options, seed: int, grammar: str = "", accepted: Iterable[int] = ()
    ) -> None:
        """`accepted` are the tokens of the answer so far: it goes on as if it had chosen them.

        Raises ValueError when llama.cpp does not take `grammar`, or the grammar not what is accepted.
        """
        self._seed, self._drawn, self._position = seed, options.temperature > 0.0, 0
        start = llama.llama_sampler_init_grammar
        self.grammar = start(model.vocab, grammar.encode(), b"root") if grammar else None
        # llama.cpp's grammar takes control tokens for their spelling, of which the answer would hold nothing.
        self._silent = model.silent if grammar else np.empty(0, np.int32)
        self.handle = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        self._candidates = np.empty(model.tokens if grammar else 0, _CANDIDATE)
        for link in _links(model, options):
            llama.llama_sampler_chain_add(self.handle, link)
        if grammar and not self.grammar:
            self.close()
            raise ValueError("llama.cpp cannot read the schema's grammar: simplify the schema")
        for token in accepted:
            if self.grammar and not self._allows(int(token)):
                self.close()
                raise ValueError("it cannot go on after a text that does not fit the schema")
            self._accept(int(token))

    def sample(self, context: Any, row: int) -> int:
        """Return the next token at a row of what llama.cpp's `context` just decoded; -1: none is legal."""
        self._throw()
        if self.grammar is None:
            self._position += 1
            return int(llama.llama_sampler_sample(self.handle, context, row))
        logits = np.ctypeslib.as_array(llama.llama_get_logits_ith(context, row), self._candidates.shape)
        token = self._choose(logits, legal=False)
        if not self._allows(token):
            token = self._choose(logits, legal=True)
            if token < 0 or not self._allows(token):
                return -1
        self._accept(token)
        return token

    def _throw(self) -> None:
        """Put in dice of the seed and the position: an answer that goes on elsewhere draws the same."""
        if self._drawn:
            last = llama.llama_sampler_chain_n(self.handle) - 1
            llama.llama_sampler_free(llama.llama_sampler_chain_remove(self.handle, last))
            digest = blake2b(b"%d %d" % (self._seed, self._position), digest_size=4).digest()
            # The largest seed means "a random one" to llama.cpp, so it is left out.
            dice = llama.llama_sampler_init_dist(int.from_bytes(digest, "big") % 0xFFFF_FFFF)
            llama.llama_sampler_chain_add(self.handle, dice)

    def _choose(self, logits: NDArray[np.float32], *, legal: bool) -> int:
        """Let the chain choose among all tokens, or the `legal` ones; -1: there is none."""
        self._candidates["id"], self._candidates["logit"] = np.arange(len(logits)), logits
        array = _candidate_array(self._candidates)
        if legal:
            self._candidates["logit"][self._silent] = -np.inf
            llama.llama_sampler_apply(self.grammar, ctypes.byref(array))
            if not np.isfinite(self._candidates["logit"]).any():
                return -1
        llama.llama_sampler_apply(self.handle, ctypes.byref(array))
        return int(array.data[array.selected].id)

    def _allows(self, token: int) -> bool:
        """Return whether the grammar allows `token` next. To accept another one ends the process."""
        one = np.array([(token, -np.inf if token in self._silent else 1.0, 0.0)], _CANDIDATE)
        llama.llama_sampler_apply(self.grammar, ctypes.byref(_candidate_array(one)))
        return bool(np.isfinite(one["logit"][0]))

    def _accept(self, token: int) -> None:
        self._position += 1
        llama.llama_sampler_accept(self.handle, token)
        if self.grammar is not None:
            llama.llama_sampler_accept(self.grammar, token)

    def close(self) -> None:
        """Free it."""
        for handle in filter(None, (self.handle, self.grammar)):
            llama.llama_sampler_free(handle)
        self.handle = self.grammar = None


def _links(model: Model, options: Options) -> Iterator[Any]:
    """Make the samplers of a chain, the cheapest cut first; dice come last."""
    if options.logit_bias:
        biases = (llama.llama_logit_bias * len(options.logit_bias))(*options.logit_bias)
        yield llama.llama_sampler_init_logit_bias(model.tokens, len(biases), biases)
    penalties = (options.repeat_penalty, options.frequency_penalty, options.presence_penalty)
    if penalties != (1.0, 0.0, 0.0):
        yield llama.llama_sampler_init_penalties(model.tokens, PENALTY_TOKENS, *penalties)
    if options.temperature <= 0.0:
        yield llama.llama_sampler_init_greedy()
        return
    yield llama.llama_sampler_init_top_k(options.top_k or TOP_K)
    if options.top_p < 1.0:
        yield llama.llama_sampler_init_top_p(options.top_p, 1)
    if options.min_p > 0.0:
        yield llama.llama_sampler_init_min_p(options.min_p, 1)
    yield llama.llama_sampler_init_temp(options.temperature)
    yield llama.llama_sampler_init_dist(0)


def _candidate_array(candidates: NDArray[Any]) -> Any:
    data = candidates.ctypes.data_as(llama.llama_token_data_p)
    return llama.llama_token_data_array(data, len(candidates), -1, False)


@dataclass
class Part:
    """A run of one sequence's tokens in a batch."""

    sequence: int
    start: int
    """Position of the first token."""
    tokens: Tokens
    wanted: bool
    """Whether the token after the last one is to be sampled."""
    row: int = -1
    """Where in the batch its last token stands: filled by `Context.decode`."""


class Context:
    """The memory of a model: `sequences` conversations, with room for `tokens` each.

    Each has cells of its own: were they shared, each token would attend over all that are in use, and sixteen
    answers took a fifth longer; eight took as long (measured). llama.cpp decodes neighbours together and a
    gap apart, so those in use should be the first: with a hole among four a step takes 1.4 times as long.
    """

    def __init__(
        self,
        model: Model,
        *,
        sequences: int,
        tokens: int,
        batch_tokens: int,
        threads: int,
        adapter_scale: float = 1.0,
        pooled: bool = False,
    ) -> None:
        """`pooled`: an embedder, whose answer is the mean of a text's vectors. Raises `ModelLoadError`."""
        params = llama.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.kv_unified = sequences * tokens, sequences, pooled
        params.n_batch = params.n_ubatch = batch_tokens
        params.n_threads = params.n_threads_batch = threads
        params.no_perf = True
        if not model.gpu_layers:
            # On a CPU, flash attention takes another kernel for batches of 64 tokens and more, and logits
            # move by 0.6 with the company a prompt keeps. Without it the prompt's are equal to the last
            # bit, one answer is 1.5 times as fast at 1 900 tokens, and eight are 6 to 15 % slower (measured).
            params.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        if pooled:
            params.embeddings, params.pooling_type = True, llama.LLAMA_POOLING_TYPE_MEAN
        self.handle = llama.llama_init_from_model(model.handle, params)
        if not self.handle:
            raise ModelLoadError(f"no memory for {sequences} contexts of {tokens} tokens")
        if model.adapter:
            adapters = (llama.llama_adapter_lora_p_ctypes * 1)(model.adapter)
            llama.llama_set_adapters_lora(self.handle, adapters, 1, (ctypes.c_float * 1)(adapter_scale))
        self._memory = llama.llama_get_memory(self.handle)
        self.batch_tokens = int(llama.llama_n_batch(self.handle))
        self.dimensions = model.dimensions
        self._vocabulary = model.tokens
        self._arrays = _BatchArrays(self.batch_tokens, sequences)

    def decode(self, parts: list[Part]) -> int:
        """Run `parts` through the model and return llama.cpp's code: 0 is success.

        After any other code the caller must `forget` what the parts may have left behind.
        """
        self._arrays.fill(parts)
        return int(llama.llama_decode(self.handle, self._arrays.batch))

    def sample(self, sampler: Sampler, row: int) -> int:
        """Return the next token at a row of the batch just decoded; -1: its grammar allows none."""
        return sampler.sample(self.handle, row)

    def logprobs(self, model: Model, token: int, row: int, top: int) -> TokenLogprobs:
        """Return how likely `token` was at a row of the batch just decoded, and the `top` likeliest there."""
        pointer = llama.llama_get_logits_ith(self.handle, row)
        logits = np.ctypeslib.as_array(pointer, (model.tokens,)).astype(np.float64)
        likeliest = np.argpartition(logits, -top)[-top:] if top else np.empty(0, np.intp)
        likeliest = likeliest[np.argsort(-logits[likeliest], kind="stable")]
        logits -= logits.max()
        logits -= np.log(np.exp(logits).sum())

        def told(one: int) -> tuple[bytes, float]:
            spelled = model.piece(one) or model.control_text(one).encode()
            return spelled[:SPELLED_BYTES_MAX], min(0.0, max(LOGPROB_MIN, float(logits[one])))

        return TokenLogprobs(*told(token), tuple(told(int(one)) for one in likeliest))

    def logits(self, row: int) -> NDArray[np.float32]:
        """Return what each token of the vocabulary scores at a row of the batch just decoded."""
        pointer = llama.llama_get_logits_ith(self.handle, row)
        return np.ctypeslib.as_array(pointer, (self._vocabulary,)).astype(np.float32)

    def vector(self, sequence: int) -> NDArray[np.float32]:
        """Return the pooled vector of a sequence of the batch just decoded, scaled to unit length."""
        pointer = llama.llama_get_embeddings_seq(self.handle, sequence)
        vector = np.ctypeslib.as_array(pointer, (self.dimensions,)).astype(np.float32)
        return vector / max(float(np.linalg.norm(vector)), 1e-12)

    def forget(self, sequence: int, start: int = 0) -> None:
        """Drop what `sequence` holds from position `start` on."""
        llama.llama_memory_seq_rm(self._memory, sequence, start, -1)

    def save(self, sequence: int) -> NDArray[np.uint8] | None:
        """Return what `sequence` holds, to be put back by `restore`: 23 kB a token of a model of 135 million
        parameters. None where there is no memory for it."""
        size = llama.llama_state_seq_get_size(self.handle, sequence)
        try:
            state = np.empty(size, np.uint8)
        except MemoryError:
            return None
        llama.llama_state_seq_get_data(self.handle, _bytes_at(state), size, sequence)
        return state

    def restore(self, sequence: int, state: NDArray[np.uint8]) -> bool:
        """Let the empty `sequence` hold what `save` returned. False where there is no room in one piece: it
        then holds nothing."""
        took = llama.llama_state_seq_set_data(self.handle, _bytes_at(state), len(state), sequence)
        if took != len(state):
            self.forget(sequence)
        return bool(took == len(state))

    def clear(self) -> None:
        """Drop everything."""
        llama.llama_memory_clear(self._memory, True)

    def close(self) -> None:
        """Free it."""
        if self.handle:
            llama.llama_free(self.handle)
        self.handle = None


def quantise(source: str, target: str, name: str) -> None:
    """Write a copy of a model file as "q8_0" or "q4_0". Raises `ModelLoadError`; a part of it may be left."""
    params = llama.llama_model_quantize_default_params()
    params.ftype = {"q8_0": llama.LLAMA_FTYPE_MOSTLY_Q8_0, "q4_0": llama.LLAMA_FTYPE_MOSTLY_Q4_0}[name]
    params.allow_requantize, params.nthread = True, 1
    if llama.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(params)):
        why = "is the disk full?" if "iostream" in _complaint else _complaint
        raise ModelLoadError(f"llama.cpp cannot write {os.path.basename(source)} as {name}: {why}")


def _bytes_at(array: NDArray[np.uint8]) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))


class _BatchArrays:
    """A llama_batch over numpy arrays: filled by slices, with no work per token in Python."""

    def __init__(self, tokens: int, sequences: int) -> None:
        self._token = np.zeros(tokens, np.int32)
        self._position = np.zeros(tokens, np.int32)
        self._count = np.ones(tokens, np.int32)
        self._wanted = np.zeros(tokens, np.int8)
        self._ids = np.arange(sequences, dtype=np.int32)
        self._id_at = self._ids.ctypes.data + 4 * np.arange(sequences, dtype=np.uintp)
        self._pointer = np.zeros(tokens + 1, np.uintp)
        batch: Any = llama.llama_batch()
        batch.token = self._token.ctypes.data_as(ctypes.POINTER(llama.llama_token))
        batch.embd = None
        batch.pos = self._position.ctypes.data_as(ctypes.POINTER(llama.llama_pos))
        batch.n_seq_id = self._count.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        batch.seq_id = ctypes.cast(
            self._pointer.ctypes.data, ctypes.POINTER(ctypes.POINTER(llama.llama_seq_id))
        )
        batch.logits = self._wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8))
        self.batch = batch

    def fill(self, parts: list[Part]) -> None:
        """Put `parts` one after another and note in each where its last token stands."""
        if sum(len(p.tokens) for p in parts) > len(self._token):
            raise ValueError("more tokens than a batch holds")  # llama.cpp would abort the process
        at = 0
        for part in sorted(parts, key=lambda part: part.sequence):
            end = at + len(part.tokens)
            self._token[at:end] = part.tokens
            self._position[at:end] = np.arange(part.start, part.start + len(part.tokens), dtype=np.int32)
            self._pointer[at:end] = self._id_at[part.sequence]
            self._wanted[at:end] = 0
            part.row, at = end - 1, end
            self._wanted[part.row] = part.wanted
        self.batch.n_tokens = at
