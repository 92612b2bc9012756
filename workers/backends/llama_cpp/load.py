"""Loads a model and makes its context; finds out what the model is."""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import llama_cpp.llama_cpp as lib

from uml.protocol.errors import InvalidModel, LoadFailed
from uml.protocol.messages import Load
from uml.workers.backends.llama_cpp.layout import Layouts
from uml.workers.backends.llama_cpp.log import Log
from uml.workers.backends.llama_cpp.options import (
    CACHE_TYPES,
    FLASH_ATTENTION,
    Options,
    read,
    split,
)
from uml.workers.backends.llama_cpp.plan import Pace
from uml.workers.backends.llama_cpp.reading import Reading, open_model, without_vocabulary
from uml.workers.backends.llama_cpp.vocab import Vocab

if TYPE_CHECKING:
    from uml.workers.backends.llama_cpp.context import Context
    from uml.workers.backends.llama_cpp.draft import Draft

Progress = Callable[[str, "float | None"], None]
#: A prompt's token takes about this part of the time of the very first one, which also reads the
#: weights: measured 7 to 14 on 2 cores.
FASTER = 8


@dataclass
class Loaded:
    """embedding: makes vectors instead of text; scores: one number instead of a vector (a
    reranker). pace: of prompts, a first guess. draft: a model that guesses for this one."""

    model: Any
    context: Context
    vocab: Vocab
    options: Options
    embedding: bool
    scores: bool
    template: str | None
    facts: dict[str, Any]
    memory: dict[str, int]
    pace: Pace
    draft: Draft | None


def load(
    request: Load,
    reading: Reading,
    log: Log,
    progress: Progress,
    threads: Callable[[], int],
    grows: Callable[[], None],
) -> Loaded:
    """When this returns the model has decoded a token. reading: of its vocabulary. threads: how
    many may compute. grows: see `Context`.

    Raises: LoadFailed, InvalidModel.
    """
    model = load_model(request, log, progress)
    arch = meta(model, "general.architecture")
    pooling = int(meta(model, f"{arch}.pooling_type") or 0)
    encoder = meta(model, f"{arch}.attention.causal") == "false"
    trained = lib.llama_model_n_ctx_train(model)
    wanted = request.options.get("embedding")
    embedding = encoder or pooling > 0 if wanted is None else wanted is True
    if lib.llama_model_has_encoder(model):
        raise InvalidModel(f"{arch} models (encoder and decoder) are not supported")
    options = read(request.options, trained, embedding=embedding)
    progress("context", None)
    # Not before: these two want numpy, which comes in beside the weights (`library.bring`).
    from uml.workers.backends.llama_cpp.context import Context

    context = Context(
        model,
        context_params(options, request, embedding, pooling),
        Layouts(options.kv_cells, options.slots, elastic=_elastic(model, options, embedding)),
        log.why,
        grows,
    )
    cells, first = context.layouts.pool.cells, context.layout.cells
    kv_bytes = (log.size("KV") + log.size("RS")) * cells // first
    compute_bytes = log.size("compute") + log.size("output")
    vocab = _vocab(model, reading)
    progress("warm-up", None)
    pace = _warm_up(context, vocab, options, embedding)
    draft = None
    if options.draft_files:
        from uml.workers.backends.llama_cpp.draft import load as load_draft

        draft = load_draft(request, options, context, vocab, log, progress, threads)
    memory = log.memory(request.options.get("devices") or ())
    source = lib.llama_model_chat_template(model, None)
    template = options.chat_template or (source.decode("utf-8", "replace") if source else None)
    facts = {
        "type": "embedding" if embedding else "llm",
        "arch": arch,
        "description": _text(lib.llama_model_desc, model),
        "parameters": lib.llama_model_n_params(model),
        "weights_bytes": lib.llama_model_size(model),
        "kv_bytes": kv_bytes,
        "compute_bytes": compute_bytes,
        "n_ctx": options.n_ctx,
        "n_ctx_train": trained,
        "n_embd": lib.llama_model_n_embd(model),
        "n_vocab": vocab.size,
        "kv_cells": options.kv_cells,
        "slots": options.slots,
        "kv_columns": context.layout.sequences if context.layout.column else 0,
        "chat_template": template is not None and not embedding,
        "system": lib.llama_print_system_info().decode("utf-8", "replace").strip(),
    }
    return Loaded(
        model,
        context,
        vocab,
        options,
        embedding,
        lib.llama_pooling_type(context.handle) == lib.LLAMA_POOLING_TYPE_RANK,
        template,
        facts,
        memory,
        pace,
        draft,
    )


def meta(model: Any, key: str) -> str:
    """A value of the file's metadata as text, "" if it is not there."""
    buffer = ctypes.create_string_buffer(256)
    n = lib.llama_model_meta_val_str(model, key.encode(), buffer, len(buffer))
    return buffer.value.decode("utf-8", "replace") if n >= 0 else ""


def load_model(request: Load, log: Log, progress: Progress, stage: str = "weights") -> Any:
    """Raises: LoadFailed."""
    lib.llama_backend_init()
    said = -1.0

    def tell(fraction: float, _: Any) -> bool:
        nonlocal said
        if fraction - said >= 0.02 or fraction >= 1 > said:
            said = fraction
            progress(stage, fraction)
        return True

    callback = lib.llama_progress_callback(tell)
    given = request.options
    params = lib.llama_model_default_params()
    params.n_gpu_layers = int(given.get("n_gpu_layers") or 0)
    shares = split(given)
    if shares:
        most = lib.llama_max_devices()
        params.tensor_split = (ctypes.c_float * most)(*shares[:most])
    else:
        params.split_mode, params.main_gpu = lib.LLAMA_SPLIT_MODE_NONE, 0
    params.load_mode = {
        (True, False): lib.LLAMA_LOAD_MODE_MMAP,
        (True, True): lib.LLAMA_LOAD_MODE_MMAP_MLOCK,
        (False, False): lib.LLAMA_LOAD_MODE_NONE,
        (False, True): lib.LLAMA_LOAD_MODE_MLOCK,
    }[given.get("mmap") is not False, given.get("mlock") is True]
    params.progress_callback = callback
    if not request.files:
        raise LoadFailed("no file to load")
    arch, tokens = given.get("arch"), given.get("vocab_size")
    model = None
    if arch and tokens:
        overrides = without_vocabulary(arch, tokens)
        params.kv_overrides = overrides
        model = open_model(request.files, params)
        params.kv_overrides = None
    # A file that wants its vocabulary, or is broken: then this tells why.
    model = model or open_model(request.files, params)
    if not model:
        raise LoadFailed(f"llama.cpp does not load {request.files[0]}: {log.why() or 'no reason'}")
    return model


def _vocab(model: Any, reading: Reading) -> Vocab:
    """The model's own, where it has one, else the one that was read apart. Raises: LoadFailed."""
    own = lib.llama_model_get_vocab(model)
    if lib.llama_vocab_type(own) != lib.LLAMA_VOCAB_TYPE_NONE:
        reading.drop()
        return Vocab(own)
    apart = reading.vocabulary()
    if apart is None or lib.llama_vocab_n_tokens(apart) != lib.llama_vocab_n_tokens(own):
        raise LoadFailed("the vocabulary is not the model's")
    return Vocab(apart)


def context_params(options: Options, request: Load, embedding: bool, pooling: int) -> Any:
    """Of the context, but for what its layout decides."""
    params = lib.llama_context_default_params()
    params.n_batch, params.n_ubatch = options.n_batch, options.n_ubatch
    params.n_threads = params.n_threads_batch = request.threads
    params.swa_full = options.swa_full
    params.type_k = CACHE_TYPES[options.cache_type_k]
    params.type_v = CACHE_TYPES[options.cache_type_v]
    params.flash_attn_type = FLASH_ATTENTION[options.flash_attention]
    params.offload_kqv = options.n_gpu_layers != 0
    params.no_perf = True
    if embedding:
        params.embeddings = True
        params.pooling_type = pooling or lib.LLAMA_POOLING_TYPE_MEAN
    else:
        # A row of logits per slot is all a step gives; room for n_batch rows would be taken else.
        # The library wants one for whoever has the dead cells (`Context.cut`), too.
        params.n_outputs_max = options.slots + 1
    return params


def _elastic(model: Any, options: Options, embedding: bool) -> bool:
    """Whether the cells may be divided. A recurrent state has none; a window that forgets cannot
    be moved whole; on accelerators it was never measured."""
    moves = not (lib.llama_model_is_recurrent(model) or lib.llama_model_is_hybrid(model))
    whole = options.swa_full or not lib.llama_model_n_swa(model)
    return moves and whole and not (options.kv_unified or options.n_gpu_layers or embedding)


def _warm_up(context: Context, vocab: Vocab, options: Options, embedding: bool) -> Pace:
    """Decode one token: a library built for another processor dies here and not in somebody's
    request. Also reads the weights from disk. How fast prompts are is guessed from it: to measure
    that with a few more tokens would hold up the first answer by 0.1 s, and the first step of the
    first prompt tells it as well."""
    from uml.workers.backends.llama_cpp.batch import Batch

    batch, pace = Batch(1), Pace()
    batch.run([max(vocab.bos, 0)], 0, 0, output=True, every=embedding)
    begin = time.monotonic()
    if status := lib.llama_decode(context.handle, batch.c):
        raise LoadFailed(f"the model loads but does not decode (status {status})")
    lib.llama_synchronize(context.handle)
    pace.rate = FASTER / max(time.monotonic() - begin, 1e-6)
    if context.layout.column and not context.portable():
        context.layouts = Layouts(options.kv_cells, options.slots, elastic=False)
        context.move(context.layouts.pool)
    if context.memory:
        # Columns are plain cells: what is in an empty one is never looked at, and to zero them all
        # again would hold up the load. A recurrent state is looked at.
        context.clear(data=not context.layout.column)
    return pace


def _text(function: Any, model: Any) -> str:
    buffer = ctypes.create_string_buffer(256)
    with contextlib.suppress(UnicodeDecodeError):
        function(model, buffer, len(buffer))
    return buffer.value.decode("utf-8", "replace")
