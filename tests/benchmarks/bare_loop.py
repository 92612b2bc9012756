"""The least that generation can cost: the low-level calls in one process, no server around them.

Runs in the backend's own Python, by file: `python bare_loop.py MODEL THREADS SLOTS`. Reads one
JSON line per job, {"streams", "head", "prompt", "tokens"}, and answers {"seconds", "first_s"}.

A job does the batches a server has to do for `streams` requests at once: the first `head` tokens of
the prompt are there already (servers share the template's head), the other prompt - head are
computed for each, then all advance together, one token per step, by greedy sampling. No text, no
stop strings, no wire, nobody joins or leaves: a bound for anything built on these calls.
"""

from __future__ import annotations

import json
import random
import sys
import time

import llama_cpp as lib

#: Tokens per decode while prompts are read; the library's own default of n_ubatch.
_BATCH = 512


class Loop:
    def __init__(self, path: str, threads: int, slots: int) -> None:
        lib.llama_backend_init()
        model = lib.llama_model_default_params()
        self.model = lib.llama_model_load_from_file(path.encode(), model)
        context = lib.llama_context_default_params()
        context.n_ctx = 320 * slots
        context.n_batch = context.n_ubatch = _BATCH
        context.n_seq_max = slots + 1
        context.n_threads = context.n_threads_batch = threads
        context.kv_unified = True
        context.no_perf = True
        self.ctx = lib.llama_init_from_model(self.model, context)
        self.memory = lib.llama_get_memory(self.ctx)
        self.batch = lib.llama_batch_init(_BATCH, 0, 1)
        self.greedy = lib.llama_sampler_init_greedy()
        self.vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))
        self.chance = random.Random(0)

    def words(self, count: int) -> list[int]:
        return [self.chance.randrange(100, self.vocab) for _ in range(count)]

    def decode(self, rows: list[tuple[int, int, int, bool]]) -> list[int]:
        """rows: (token, position, sequence, whether to sample after it). The sampled tokens."""
        batch = self.batch
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = wanted
        batch.n_tokens = len(rows)
        code = lib.llama_decode(self.ctx, batch)
        if code:
            raise RuntimeError(f"llama_decode: {code}")
        return [
            lib.llama_sampler_sample(self.greedy, self.ctx, i)
            for i, row in enumerate(rows)
            if row[3]
        ]

    def job(self, streams: int, head: int, prompt: int, tokens: int) -> dict[str, float]:
        lib.llama_memory_clear(self.memory, False)
        shared = [(t, i, streams, False) for i, t in enumerate(self.words(head))]
        for at in range(0, head, _BATCH):
            self.decode(shared[at : at + _BATCH])
        rows: list[tuple[int, int, int, bool]] = []
        for s in range(streams):
            texts = self.words(prompt - head)
            rows += [(t, head + i, s, head + i == prompt - 1) for i, t in enumerate(texts)]
        lib.llama_synchronize(self.ctx)
        begun = time.perf_counter()
        for s in range(streams):
            lib.llama_memory_seq_cp(self.memory, streams, s, 0, head)
        last: list[int] = []
        for at in range(0, len(rows), _BATCH):
            last += self.decode(rows[at : at + _BATCH])
        first = time.perf_counter() - begun
        for n in range(tokens - 1):
            last = self.decode([(t, prompt + n, s, True) for s, t in enumerate(last)])
        return {"seconds": time.perf_counter() - begun, "first_s": first}


def main() -> None:
    lib.llama_log_set(_quiet, None)
    loop = Loop(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(loop.job(**json.loads(line))), flush=True)


@lib.llama_log_callback
def _quiet(level: int, text: bytes, data: object) -> None:
    pass


if __name__ == "__main__":
    main()
