"""The child processes the engine is measured against, each started by `benchmarks.arms` and told what to do.

    python -m benchmarks.rivals quantize FROM TO        write a Q8_0 copy of a GGUF file
    python -m benchmarks.rivals llama '{"model": …}'    llama_cpp.Llama, by lines of JSON on stdin and stdout
    python -m benchmarks.rivals server '{"model": …}'   llama.cpp's own server on a free loopback port

All end when their stdin does, so that none outlives the benchmark, however that ends.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from typing import Any, TextIO


def quantize(source: str, target: str) -> None:
    """Write a Q8_0 copy of a model, also of one that is quantised already."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize, params.nthread = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, True, 1
    code = llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(params))
    if code:
        raise SystemExit(f"llama.cpp cannot quantise {source} (it said {code})")


def llama(options: dict[str, Any]) -> None:
    """Answer one request after the other, in the order they come, each token as soon as it is there."""
    out = _private_stdout()
    import llama_cpp

    model = llama_cpp.Llama(
        model_path=options["model"],
        n_ctx=options["context_tokens"],
        n_threads=options["threads"],
        n_threads_batch=options["threads"],
        verbose=False,
    )
    build = llama_cpp.llama_print_system_info().decode("utf-8", "replace")
    _say(out, {"build": f"llama-cpp-python {llama_cpp.__version__}: {build}"})
    for line in sys.stdin:
        _answer(model, json.loads(line), out)


def _answer(model: Any, request: dict[str, Any], out: TextIO) -> None:
    prompt, finish = 0, "length"
    stream = model.create_chat_completion(
        request["messages"], max_tokens=request["tokens"], temperature=0.0, stream=True
    )
    for event in stream:
        choice = event["choices"][0]
        # When the first token is there, the model holds the prompt and nothing else.
        prompt = prompt or model.n_tokens
        finish = choice["finish_reason"] or finish
        if choice["delta"].get("content"):
            _say(out, {"id": request["id"], "text": choice["delta"]["content"]})
    # It holds all it wrote but the token that ended it, which was an end mark unless the length did.
    tokens = request["tokens"] if finish == "length" else model.n_tokens - prompt
    _say(out, {"id": request["id"], "prompt_tokens": prompt, "tokens": tokens})


def server(options: dict[str, Any]) -> None:
    """Serve until stdin ends. What is set here is named and justified in `benchmarks.engine`."""
    out = _private_stdout()
    import xllamacpp  # type: ignore[import-untyped, import-not-found, unused-ignore]

    params = xllamacpp.CommonParams()
    params.model.path = options["model"]
    params.hostnames, params.port = ["127.0.0.1"], 0
    params.n_parallel, params.n_ctx = options["slots"], options["context_tokens"]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options["threads"]
    params.n_batch = params.n_ubatch = 512
    params.n_gpu_layers, params.fit_params = 0, False
    params.cont_batching, params.kv_unified = True, True
    params.cache_prompt, params.cache_ram_mib, params.cache_idle_slots = False, 0, False
    flash = xllamacpp.llama_flash_attn_type
    params.flash_attn_type = getattr(flash, f"LLAMA_FLASH_ATTN_TYPE_{options['flash_attention']}")
    # A stream holds its thread for as long as it lasts, so fewer threads than slots would make it wait.
    params.n_threads_http = options["slots"] + 4
    params.slot_save_path = options["folder"] + os.sep  # without a folder it does not let slots be emptied
    params.ui, params.warmup, params.no_perf, params.verbosity = False, True, True, 1
    serving = xllamacpp.Server(params)
    build = f"xllamacpp {xllamacpp.__version__}: {xllamacpp.get_system_info()}"
    _say(out, {"address": serving.listening_address, "build": build})
    sys.stdin.read()
    os._exit(0)  # there is nothing to save, and its threads may be in the midst of an answer


def _private_stdout() -> TextIO:
    """Return stdout under another number, and send what C code prints there to stderr."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return out


def _say(out: TextIO, message: dict[str, Any]) -> None:
    out.write(json.dumps(message) + "\n")
    out.flush()


def main() -> None:
    """Become the one that is named."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides
    role, *rest = sys.argv[1:]
    try:
        if role == "quantize":
            quantize(*rest)
        elif role in ("llama", "server"):
            (llama if role == "llama" else server)(json.loads(rest[0]))
        else:
            raise SystemExit(f"there is no rival {role!r}")
    except BrokenPipeError:
        os._exit(0)  # the benchmark is gone


if __name__ == "__main__":
    main()
