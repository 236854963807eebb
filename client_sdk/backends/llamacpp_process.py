"""llama.cpp in a process of its own, which is run by its path: nothing is imported there but the binding.

The binding holds Python's lock while it opens a model: an application that generates would stand still for that long,
at every new adapter. And where llama.cpp ends its process (a failed assertion, no memory), the application goes on.

Lines of JSON both ways:

| in | out |
|---|---|
| first: what to open, see `_parameters` | `{"is_open": true}`, or `{"error": "..."}` and the end |
| `{"id": 7, "body": {...}}`: a request of llama.cpp's server | `{"id": 7, "chunk": {...}}` for each, then `{"id": 7}` |
| `{"id": 7}`: enough of it | |
| the end of the input | the end |
"""

import json
import os
import secrets
import sys
import threading
from typing import Any


def main() -> None:
    """Open what the first line says, and answer the others until there are no more."""
    # llama.cpp may print; only our lines may reach the other side.
    answers = os.dup(1)
    os.dup2(2, 1)
    requests = sys.stdin.buffer
    lock = threading.Lock()

    def say(message: dict[str, Any]) -> None:
        line = json.dumps(message).encode() + b"\n"
        with lock:
            while line:
                line = line[os.write(answers, line) :]

    try:
        server = _opened(json.loads(requests.readline()))
    except Exception as error:  # noqa: BLE001 - whatever the binding raises is for the other side to tell
        say({"error": f"{error}"})
        return
    say({"is_open": True})
    under_way: dict[int, threading.Event] = {}
    for line in requests:
        message = json.loads(line)
        number = message["id"]
        if "body" in message:
            under_way[number] = threading.Event()
            threading.Thread(
                target=_answer, args=(server, number, message["body"], under_way, say), daemon=True
            ).start()
        elif number in under_way:
            under_way[number].set()
    # Not through the interpreter's end: closing llama.cpp may wait for what it still computes.
    os._exit(0)


def _answer(server: Any, number: int, body: Any, under_way: dict[int, threading.Event], say: Any) -> None:  # noqa: ANN401
    """Run one request; this thread only waits, llama.cpp computes in its own."""
    is_enough = under_way[number]

    def receive(chunk: Any) -> bool:  # noqa: ANN401 - parsed JSON, or its text
        say({"id": number, "chunk": chunk if isinstance(chunk, dict) else json.loads(chunk)})
        return is_enough.is_set()  # true ends the request

    try:
        result = server.handle_completions(body, receive)
        if isinstance(result, dict):
            say({"id": number, "chunk": result})
    except Exception as error:  # noqa: BLE001 - it must not die unseen in its thread
        say({"id": number, "chunk": {"error": {"message": str(error)}}})
    under_way.pop(number, None)
    say({"id": number})


def _opened(order: dict[str, Any]) -> Any:  # noqa: ANN401 - the binding publishes no types
    import xllamacpp as binding  # type: ignore[import-untyped]  # noqa: PLC0415 - what fails here is told like the rest

    return binding.Server(_parameters(binding, order))


def _parameters(binding: Any, order: dict[str, Any]) -> Any:  # noqa: ANN401 - as above
    params = binding.CommonParams()
    params.model.path = order["model"]
    params.n_ctx = order["context"]
    params.n_parallel = order["parallel"]
    params.kv_unified = True  # side by side, answers share the room instead of halving it
    params.cache_ram_mib = 0  # a second copy of what the slots keep anyway
    params.n_ubatch = order["tokens_at_once"]
    params.warmup = False
    params.verbosity = -1
    params.fit_params = False
    # It also opens a port on loopback: closed to everybody by a key that is kept nowhere.
    params.api_keys = [secrets.token_hex(32)]
    for threads in (params.cpuparams, params.cpuparams_batch):
        threads.n_threads = order["threads"]
    params.cache_type_k = params.cache_type_v = getattr(binding.ggml_type, f"GGML_TYPE_{order['cache_type']}")
    if order["lookup"]:
        params.speculative.types = [binding.common_speculative_type.COMMON_SPECULATIVE_TYPE_NGRAM_MOD]
        lookup = params.speculative.ngram_mod
        lookup.n_match, lookup.n_min, lookup.n_max = order["lookup"]
    params.lora_init_without_apply = True
    params.lora_adapters = [binding.CommonAdapterLoraInfo(path, 1.0) for path in order["adapters"]]
    return params


if __name__ == "__main__":
    main()
