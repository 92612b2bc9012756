"""A model's vocabulary, read apart from its weights.

Reading it is most of what a small model's load computes (measured on 2 cores, ms of vocabulary and
of the rest: SmolLM2 54 and 25, gemma-3 with its 262,144 tokens 380 and 126), it needs little memory
and no device. So it is read before the model has its lease, while another one leaves, or at least
beside the weights.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from typing import Any

import llama_cpp.llama_cpp as lib


class Reading:
    """Begins at once, in a thread of its own. instead_of: is not needed any more; its memory goes
    first."""

    def __init__(self, files: Sequence[str], instead_of: Reading | None = None) -> None:
        self.files, self._before = list(files), instead_of
        self._model: Any = None
        self._thread = threading.Thread(target=self._read, name="vocabulary", daemon=True)
        self._thread.start()

    def vocabulary(self) -> Any:
        """llama.cpp's pointer, once all is read; None when that is impossible: the load of the
        whole model will say why."""
        self._thread.join()
        return lib.llama_model_get_vocab(self._model) if self._model else None

    def drop(self) -> None:
        """Give its memory back. Nobody may use the vocabulary any more."""
        self._thread.join()
        if self._model:
            lib.llama_model_free(self._model)
            self._model = None

    def _read(self) -> None:
        if self._before is not None:
            self._before.drop()
            self._before = None
        params = lib.llama_model_default_params()
        params.n_gpu_layers, params.vocab_only = 0, True
        self._model = open_model(self.files, params)


def open_model(files: Sequence[str], params: Any) -> Any:
    """What llama.cpp makes of a file or of all parts of one; None if nothing."""
    paths = [path.encode() for path in files]
    if not paths:
        return None
    if len(paths) == 1:
        return lib.llama_model_load_from_file(paths[0], params)
    return lib.llama_model_load_from_splits(
        (ctypes.c_char_p * len(paths))(*paths), len(paths), params
    )


def without_vocabulary(arch: str, tokens: int) -> Any:
    """Overrides of a file's metadata: what is loaded with them has `tokens` tokens without names.
    Source: llama-vocab.cpp, `no_vocab`; the list ends with an empty key."""
    overrides = (lib.llama_model_kv_override * 3)()
    kind, size, _ = overrides
    kind.tag, kind.key = lib.LLAMA_KV_OVERRIDE_TYPE_STR, b"tokenizer.ggml.model"
    kind.value.val_str = b"no_vocab"
    size.tag, size.key = lib.LLAMA_KV_OVERRIDE_TYPE_INT, f"{arch}.vocab_size".encode()
    size.value.val_i64 = tokens
    return overrides
