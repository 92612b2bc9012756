"""The libraries called directly in one process, as their own documentation shows; no server.

Runs in a backend's own Python, by file: `python bare_speech.py whisper|piper MODEL THREADS`. Reads
one JSON line per job, {"pcm": path of float32 16 kHz mono} or {"text": ...}, and answers
{"seconds", "audio_s"}. Threads and onnxruntime's settings are the ones our workers use.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any


def whisper(path: str, threads: int) -> Any:
    import numpy as np
    from pywhispercpp.model import Model

    model = Model(path, n_threads=threads, print_progress=False)

    def work(job: dict[str, str]) -> float:
        sound = np.fromfile(job["pcm"], np.float32)
        model.transcribe(sound)
        return len(sound) / 16000

    return work


def piper(path: str, threads: int) -> Any:
    import onnxruntime
    from piper import PiperVoice
    from piper.config import PiperConfig

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.enable_cpu_mem_arena = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    with open(f"{path}.json", encoding="utf-8") as f:
        voice = PiperVoice(session=session, config=PiperConfig.from_dict(json.load(f)))

    def work(job: dict[str, str]) -> float:
        count = sum(len(c.audio_int16_bytes) // 2 for c in voice.synthesize(job["text"]))
        return count / voice.config.sample_rate

    return work


def main() -> None:
    kind, path, threads = sys.argv[1:]
    work = {"whisper": whisper, "piper": piper}[kind](path, int(threads))
    for line in sys.stdin:
        job = json.loads(line)
        started = time.perf_counter()
        audio_s = work(job)
        answer = {"seconds": time.perf_counter() - started, "audio_s": audio_s}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
