"""Sizes and switches of a load, from `Load.options`: pure.

One place for every number: the supervisor's estimate counts with the same ones, and normally
sends all of them. What is missing takes these defaults:

    n_ctx       tokens of one request: min(trained, 4096); never more than trained
    slots       requests at once: 32 (at most 64)
    kv_cells    cells of the KV pool that all requests share: half of what min(slots, 8) full
                contexts would take, never less than one context, rounded up to 256
    n_batch     rows of one step: 512; n_ubatch: rows computed together: n_batch
    cache_type_k bf16 on CPUs, see `_key_type`; else, and for the values, f16
    draft_cells cells of the draft model's pool, if there is one: twice n_ctx, kv_cells at most
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from uml.protocol.errors import LoadFailed

#: ggml's numbers of the types a KV cache may have. Source: ggml.h, enum ggml_type.
CACHE_TYPES = {
    "f32": 0,
    "f16": 1,
    "q4_0": 2,
    "q4_1": 3,
    "q5_0": 6,
    "q5_1": 7,
    "q8_0": 8,
    "iq4_nl": 20,
    "bf16": 30,
}
FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}
#: Of `speculate`: guess whether it pays or not, for measurements and tests.
ALWAYS = "always"
MAX_SLOTS = 64
_PAD = 256


@dataclass(frozen=True)
class Options:
    """prefix_cache_bytes: RAM for the KV of conversations that are not in the pool.
    conversations_dir: where they are kept as files instead, for the next worker of this model.
    speculate: guess tokens ahead where that is measured to be faster, or `ALWAYS`; draft_files: of
    a model that may guess, too. kv_unified: never divide the
    cells into columns.
    embedding: None = as the file says. chat_template: instead of the file's."""

    n_ctx: int
    slots: int = 32
    kv_cells: int = 0
    n_batch: int = 512
    n_ubatch: int = 512
    cache_type_k: str = "bf16"
    cache_type_v: str = "f16"
    flash_attention: str = "auto"
    swa_full: bool = True
    kv_unified: bool = False
    n_gpu_layers: int = 0
    mmap: bool = True
    mlock: bool = False
    seed: int | None = None
    embedding: bool | None = None
    chat_template: str | None = None
    prefix_cache_bytes: int = 256 * 1024 * 1024
    conversations_dir: str | None = None
    speculate: bool | str = True
    draft_files: tuple[str, ...] = ()
    draft_cells: int = 0


def read(given: Mapping[str, Any], trained: int, *, embedding: bool = False) -> Options:
    """Complete options for a model trained for `trained` tokens (0 = unknown). Keys of others are
    ignored. Raises: LoadFailed naming the key, its value and what it may be."""
    values = {k: v for k, v in given.items() if v is not None}
    ceiling = trained or 1 << 20
    n_ctx = min(_integer(values, "n_ctx", min(ceiling, 4096), 1), ceiling)
    slots = _integer(values, "slots", 32, 1, MAX_SLOTS)
    batch = _integer(values, "n_batch", 512, 1)
    if embedding:
        # An encoder looks at whole texts at once, so a text has to fit into one batch.
        batch = pool = max(batch, pad(n_ctx))
    else:
        pool = max(n_ctx, min(slots, 8) * n_ctx // 2)
    cells = max(pad(_integer(values, "kv_cells", pool, 1)), pad(n_ctx))
    return Options(
        n_ctx=n_ctx,
        slots=slots,
        kv_cells=cells,
        n_batch=max(batch, slots),
        n_ubatch=batch if embedding else min(_integer(values, "n_ubatch", batch, 1), batch),
        cache_type_k=_one_of(values, "cache_type_k", _key_type(values), CACHE_TYPES),
        cache_type_v=_one_of(values, "cache_type_v", "f16", CACHE_TYPES),
        flash_attention=_one_of(values, "flash_attention", "auto", FLASH_ATTENTION),
        swa_full=_flag(values, "swa_full", True),
        kv_unified=_flag(values, "kv_unified", False),
        n_gpu_layers=_integer(values, "n_gpu_layers", 0, -1),
        mmap=_flag(values, "mmap", True),
        mlock=_flag(values, "mlock", False),
        seed=_integer(values, "seed", 0, 0) if "seed" in values else None,
        embedding=_flag(values, "embedding", embedding) if "embedding" in values else None,
        chat_template=str(values["chat_template"]) if "chat_template" in values else None,
        prefix_cache_bytes=_integer(values, "prefix_cache_bytes", 256 * 1024 * 1024, 0),
        conversations_dir=str(values["conversations_dir"])
        if "conversations_dir" in values
        else None,
        speculate=ALWAYS if values.get("speculate") == ALWAYS else _flag(values, "speculate", True),
        draft_files=tuple(values.get("draft_files") or ()),
        draft_cells=pad(_integer(values, "draft_cells", min(cells, 2 * n_ctx), 1)),
    )


def _key_type(values: Mapping[str, Any]) -> str:
    """On CPUs bf16. With keys like the values, f16, llama.cpp's attention adds up in another way
    where 64 or more rows are computed together, and in yet another where there is one; with others
    it computes each row by itself. Then an answer is the same bit by bit whoever else is computed
    with it. Measured, SmolLM2: steps of 1 and 8 answers take 5.9 and 29.0 ms instead of 6.3 and
    28.4, prompts of 100, 400 and 1,500 tokens are read at 473, 433 and 314 tokens a second instead
    of 459, 464 and 413, and what the model says is as likely (3.937 nats per token; 3.936).

    Source: ggml-cpu/ops.cpp, ggml_compute_forward_flash_attn_ext_f16.
    """
    plain = values.get("n_gpu_layers") or values.get("flash_attention") == "off"
    return "f16" if plain else "bf16"


def split(given: Mapping[str, Any]) -> list[float]:
    """`tensor_split`: how many layers each device gets, in their order; [] = one device has all.

    Raises: LoadFailed.
    """
    shares = given.get("tensor_split") or []
    numbers = all(isinstance(s, (int, float)) and not isinstance(s, bool) for s in shares)
    if not numbers or not all(math.isfinite(s) and s >= 0 for s in shares):
        raise LoadFailed(f"option tensor_split is {shares!r}; it has to be numbers from 0")
    return [float(s) for s in shares] if len(shares) > 1 and sum(shares) else []


def pad(cells: int) -> int:
    """llama.cpp rounds the number of cells up to this."""
    return -(-cells // _PAD) * _PAD


def _integer(
    values: Mapping[str, Any], key: str, default: int, low: int, high: int = 1 << 31
) -> int:
    value = values.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise LoadFailed(f"option {key} is {value!r}; it has to be a whole number", param=key)
    if value != int(value) or not low <= value <= high:
        raise LoadFailed(f"option {key} is {value!r}; it has to be {low} to {high}", param=key)
    return int(value)


def _flag(values: Mapping[str, Any], key: str, default: bool) -> bool:
    value = values.get(key, default)
    if not isinstance(value, bool):
        raise LoadFailed(f"option {key} is {value!r}; it has to be true or false", param=key)
    return value


def _one_of(values: Mapping[str, Any], key: str, default: str, known: Mapping[str, int]) -> str:
    value = values.get(key, default)
    if value not in known:
        raise LoadFailed(f"option {key} is {value!r}; known are {', '.join(known)}", param=key)
    return str(value)
