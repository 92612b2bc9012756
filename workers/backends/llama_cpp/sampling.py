"""From a row of logits to a token, in llama.cpp's order of samplers.

What only shifts logits (logit_bias, forbidden end tokens) is done on the row itself, so that plain
greedy decoding stays one argmax whatever the bias.
"""

from __future__ import annotations

import ctypes
import dataclasses
import math
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np

from uml.protocol.errors import BadRequest
from uml.protocol.tasks import SAMPLERS, Sampling
from uml.workers.backends.llama_cpp.guide import Guide
from uml.workers.backends.llama_cpp.vocab import Vocab

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
#: Steps of mirostat 1's estimate. Source: llama.cpp common/sampling.cpp.
_MIROSTAT_M = 100
_INFILL_MOST = 200


def check(sampling: Sampling) -> None:
    """Raises: BadRequest for values that would make the library abort or mean nothing."""
    for field in dataclasses.fields(sampling):
        value = getattr(sampling, field.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise BadRequest(f"{field.name} is not a finite number", param=field.name)
    if sampling.repeat_penalty <= 0:
        raise BadRequest("repeat_penalty has to be greater than 0", param="repeat_penalty")
    if sampling.mirostat not in (0, 1, 2):
        raise BadRequest("mirostat has to be 0, 1 or 2", param="mirostat")
    order = sampling.samplers
    if unknown := [name for name in order if name not in (*SAMPLERS, "infill")]:
        raise BadRequest(f"there is no sampler {unknown[0]!r}", param="samplers")
    if "infill" in order:
        # It compares every pair of tokens that are left.
        before = order[: order.index("infill")]
        if "top_k" not in before or not 0 < sampling.top_k <= _INFILL_MOST:
            raise BadRequest(
                f"the infill sampler wants top_k before it, of 1 to {_INFILL_MOST}",
                param="samplers",
            )


class Sampler:
    """State of one choice's sampling. Free it when the choice ends, on the thread that uses it.

    seed: 32 bits. forbidden: tokens that must not come. prompt: what the repetition samplers have
    seen before the first token. gbnf: a grammar or None. guide: another keeper of a form, or None.
    Raises: BadRequest.
    """

    def __init__(
        self,
        vocab: Vocab,
        sampling: Sampling,
        *,
        seed: int,
        n_ctx: int,
        prompt: list[int],
        forbidden: list[int] | None = None,
        gbnf: str | None = None,
        guide: Guide | None = None,
    ) -> None:
        check(sampling)
        self._vocab = vocab
        self._chain: Any = None
        self._grammar: Any = None
        self._candidates: Any = None
        self._bias = _bias(vocab, sampling, forbidden or [])
        self._guide = guide
        if gbnf is not None:
            self._grammar = _grammar(vocab, gbnf)
        #: One argmax does it.
        self.greedy = False
        self._draw: Draw | None = None
        if gbnf is not None or _penalises(sampling):
            self._chain = _chain(vocab, sampling, seed, n_ctx, prompt)
        elif sampling.temperature <= 0:
            self.greedy = True
        elif _only_temperature(sampling):
            self._draw = Draw(seed, sampling.temperature)
        else:
            self._chain = _chain(vocab, sampling, seed, n_ctx, prompt)

    def pick(self, context: Any, index: int, row: Any) -> int:
        """The next token, accepted. index: of the row in the batch; row: its logits, changed."""
        if self._bias is not None:
            row[self._bias[0]] += self._bias[1]
        if self._guide is None:
            return self._pick(context, index, row)
        self._guide.apply(row)
        token = self._pick(context, index, row)
        self._guide.accept(token)
        return token

    @property
    def finished(self) -> bool:
        """The answer has its whole form: nothing can follow but its end."""
        return self._guide is not None and self._guide.finished

    def _pick(self, context: Any, index: int, row: Any) -> int:
        if self.greedy:
            return int(row.argmax())
        if self._draw is not None:
            return self._draw(row)
        if self._grammar is None:
            return int(lib.llama_sampler_sample(self._chain, context, index))
        return self._pick_by_grammar(row)

    def free(self) -> None:
        for sampler in (self._chain, self._grammar):
            if sampler:
                lib.llama_sampler_free(sampler)
        self._chain = self._grammar = None

    def _pick_by_grammar(self, row: Any) -> int:
        """Ask the grammar about the chosen token alone, and about all only when it says no: that
        is rare, and asking about a whole vocabulary is slow."""
        token = self._apply(row, self._chain)
        if not self._allows(token, row):
            token = self._apply(row, self._grammar, self._chain)
        lib.llama_sampler_accept(self._chain, token)
        if not self._vocab.is_end(token):  # the grammar aborts on an end it does not expect
            lib.llama_sampler_accept(self._grammar, token)
        return token

    def _apply(self, row: Any, *samplers: Any) -> int:
        if self._candidates is None:
            self._candidates = np.empty(len(row), _CANDIDATE)
        candidates = self._candidates
        candidates["id"] = np.arange(len(row), dtype=np.int32)
        candidates["logit"] = row
        candidates["p"] = 0
        array = _array(candidates)
        for sampler in samplers:
            lib.llama_sampler_apply(sampler, ctypes.byref(array))
        # Samplers may have put an array of their own in the place of ours.
        return int(array.data[array.selected].id)

    def _allows(self, token: int, row: Any) -> bool:
        one = np.array([(token, row[token], 0)], _CANDIDATE)
        lib.llama_sampler_apply(self._grammar, ctypes.byref(_array(one)))
        return bool(np.isfinite(one["logit"][0]))


class Draw:
    """Chooses by probability, nothing cut off: what most clients ask for, and several times faster
    with whole arrays than through a list of candidates."""

    _BLOCK = 512

    def __init__(self, seed: int, temperature: float) -> None:
        self._random = np.random.default_rng(seed)
        self._scale = np.float32(1 / temperature)

    def __call__(self, row: Any) -> int:
        weights = np.exp((row - row.max()) * self._scale)
        # In blocks, for speed, and because one long float32 sum would lose the small ones.
        starts = np.arange(0, len(weights), self._BLOCK)
        ends = np.cumsum(np.add.reduceat(weights, starts), dtype=np.float64)
        point = self._random.random() * ends[-1]
        block = min(int(np.searchsorted(ends, point, "right")), len(starts) - 1)
        first = int(starts[block])
        inside = np.cumsum(weights[first : first + self._BLOCK], dtype=np.float64)
        offset = int(np.searchsorted(inside, point - (ends[block - 1] if block else 0.0), "right"))
        # Rounding may point just past the end; the heaviest of the block is certainly possible.
        if offset >= len(inside) or not weights[first + offset]:
            offset = int(weights[first : first + self._BLOCK].argmax())
        return first + offset


def _array(candidates: Any) -> Any:
    data = ctypes.cast(candidates.ctypes.data, lib.llama_token_data_p)
    return lib.llama_token_data_array(data=data, size=len(candidates), selected=-1, sorted=False)


def _penalises(s: Sampling) -> bool:
    repeats = s.repeat_penalty != 1 or s.frequency_penalty != 0 or s.presence_penalty != 0
    penalties = "penalties" in s.samplers and repeats and s.penalty_last_n != 0
    return penalties or ("dry" in s.samplers and _dry(s))


def _only_temperature(s: Sampling) -> bool:
    on = {
        "top_n_sigma": s.top_n_sigma > 0,
        "top_k": s.top_k > 0,
        "typ_p": s.typical_p < 1,
        "top_p": s.top_p < 1,
        "min_p": s.min_p > 0,
        "xtc": s.xtc_probability > 0,
        "infill": True,
        "adaptive_p": s.adaptive_target >= 0,
    }
    others = any(on.get(name, False) for name in s.samplers)
    return not (others or s.mirostat or s.dynatemp_range > 0) and "temperature" in s.samplers


def _dry(s: Sampling) -> bool:
    return s.dry_multiplier != 0 and s.dry_base >= 1 and s.dry_penalty_last_n != 0


def _chain(vocab: Vocab, s: Sampling, seed: int, n_ctx: int, prompt: list[int]) -> Any:
    params = lib.llama_sampler_chain_default_params()
    params.no_perf = True
    chain = lib.llama_sampler_chain_init(params)
    cuts = s.temperature > 0 and not s.mirostat
    for name in s.samplers:
        if name in ("penalties", "dry") or cuts:
            for sampler in _samplers(name, vocab, s, seed, n_ctx, prompt):
                lib.llama_sampler_chain_add(chain, sampler)
    for sampler in _last(vocab, s, seed):
        lib.llama_sampler_chain_add(chain, sampler)
    return chain


def _samplers(
    name: str, vocab: Vocab, s: Sampling, seed: int, n_ctx: int, prompt: list[int]
) -> list[Any]:
    """What `name` stands for in a chain: nothing when it is off."""
    keep = max(1, s.min_keep)
    match name:
        case "penalties":
            return _repetition(vocab, s, n_ctx, prompt)
        case "dry" if _dry(s):
            return [_dry_sampler(vocab, s, n_ctx, prompt)]
        case "top_n_sigma" if s.top_n_sigma > 0:
            return [lib.llama_sampler_init_top_n_sigma(s.top_n_sigma)]
        case "top_k" if s.top_k > 0:
            return [lib.llama_sampler_init_top_k(max(s.top_k, s.min_keep))]
        case "typ_p" if s.typical_p < 1:
            return [lib.llama_sampler_init_typical(s.typical_p, keep)]
        case "top_p" if s.top_p < 1:
            return [lib.llama_sampler_init_top_p(s.top_p, keep)]
        case "min_p" if s.min_p > 0:
            return [lib.llama_sampler_init_min_p(s.min_p, keep)]
        case "xtc" if s.xtc_probability > 0:
            return [lib.llama_sampler_init_xtc(s.xtc_probability, s.xtc_threshold, keep, seed)]
        case "infill":
            return [lib.llama_sampler_init_infill(vocab.pointer)]
        case "temperature":
            return [
                lib.llama_sampler_init_temp_ext(
                    s.temperature, s.dynatemp_range, s.dynatemp_exponent
                )
            ]
    return []


def _last(vocab: Vocab, s: Sampling, seed: int) -> list[Any]:
    """What chooses the token in the end."""
    if s.temperature <= 0:
        return [lib.llama_sampler_init_greedy()]
    temperature = lib.llama_sampler_init_temp
    tau, eta = s.mirostat_tau, s.mirostat_eta
    if s.mirostat == 1:
        first = lib.llama_sampler_init_mirostat(vocab.size, seed, tau, eta, _MIROSTAT_M)
        return [temperature(s.temperature), first]
    if s.mirostat == 2:
        return [temperature(s.temperature), lib.llama_sampler_init_mirostat_v2(seed, tau, eta)]
    if s.adaptive_target >= 0 and "adaptive_p" in s.samplers:
        return [lib.llama_sampler_init_adaptive_p(s.adaptive_target, s.adaptive_decay, seed)]
    return [lib.llama_sampler_init_dist(seed)]


def _repetition(vocab: Vocab, s: Sampling, n_ctx: int, prompt: list[int]) -> list[Any]:
    """Repetition counts the prompt, OpenAI's two penalties only the answer: two samplers."""
    last_n = n_ctx if s.penalty_last_n < 0 else s.penalty_last_n
    found = []
    if last_n and s.repeat_penalty != 1:
        sampler = _penalties(vocab, last_n, repeat=s.repeat_penalty)
        found.append(_having_seen(sampler, prompt[-last_n:]))
    if last_n and (s.frequency_penalty or s.presence_penalty):
        frequency, presence = s.frequency_penalty, s.presence_penalty
        found.append(_penalties(vocab, last_n, frequency=frequency, presence=presence))
    return found


def _dry_sampler(vocab: Vocab, s: Sampling, n_ctx: int, prompt: list[int]) -> Any:
    look = n_ctx if s.dry_penalty_last_n < 0 else s.dry_penalty_last_n
    breakers = [b.encode() for b in s.dry_sequence_breakers if b]
    sampler = lib.llama_sampler_init_dry(
        vocab.pointer,
        s.dry_multiplier,
        s.dry_base,
        s.dry_allowed_length,
        look,
        (ctypes.c_char_p * len(breakers))(*breakers),
        len(breakers),
    )
    return _having_seen(sampler, prompt[-look:])


def _having_seen(sampler: Any, tokens: list[int]) -> Any:
    for token in tokens:
        lib.llama_sampler_accept(sampler, token)
    return sampler


def _penalties(
    vocab: Vocab, last_n: int, *, repeat: float = 1, frequency: float = 0, presence: float = 0
) -> Any:
    return lib.llama_sampler_init_penalties(vocab.size, last_n, repeat, frequency, presence)


def _bias(vocab: Vocab, sampling: Sampling, forbidden: list[int]) -> tuple[Any, Any] | None:
    bias = dict.fromkeys([*vocab.suppressed, *forbidden], -math.inf)
    for key, value in sampling.logit_bias.items():
        try:
            token, amount = int(key), float(value)
        except (TypeError, ValueError):
            raise BadRequest(f"logit_bias: {key!r}: {value!r}", param="logit_bias") from None
        vocab.check([token], "logit_bias")
        bias[token] = bias.get(token, 0.0) + amount
    if not bias:
        return None
    return np.fromiter(bias, np.int64), np.fromiter(bias.values(), np.float32)


def _grammar(vocab: Vocab, text: str) -> Any:
    pointer = lib.llama_sampler_init_grammar(vocab.pointer, text.encode(), b"root")
    if not pointer:
        raise BadRequest("the grammar is not valid GBNF (it needs a rule `root`)", param="grammar")
    return pointer
