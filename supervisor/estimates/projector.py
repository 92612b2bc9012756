"""What a projector (`mmproj`) takes while it encodes an image or sound, in llama.cpp.

Fitted to the compute buffers that llama.cpp (CPU) reports for random encoders of the shapes of
gemma3, idefics3, LLaVA, Qwen2-VL and Qwen2.5-VL: the larger of a layer's feed-forward and, without
flash attention, its attention with the scores of all heads, for all positions. Audio is by the same
rule and was not measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uml.protocol.models import ModelFacts

#: Tokens of the largest image, for projectors that take images of any size. Source: llama.cpp's
#: clip.cpp, `set_limit_image_tokens`; `image_max_tokens` says otherwise.
_MAX_TOKENS = {
    "glm4v": 4096,
    "kimivl": 1024,
    "lfm2": 256,
    "lightonocr": 1024,
    "pixtral": 1024,
    "qwen2vl_merger": 4096,
    "qwen2.5vl_merger": 4096,
    "qwen3vl_merger": 4096,
}
#: Of those, patches along each side of a token, where the file does not say.
_MERGES = {"qwen2vl_merger": 2, "qwen2.5vl_merger": 2, "qwen3vl_merger": 2, "glm4v": 2}
#: Positions of a window of 30 seconds. Source: Whisper's encoder, which they descend from.
_AUDIO_POSITIONS = 1500


def encoding_bytes(facts: ModelFacts, options: Mapping[str, Any]) -> int:
    """Scratch of one image, or one window of sound, whichever is more; 0 without a projector."""
    encoders: Mapping[str, Any] = facts.extra.get("encoders") or {}
    found = (_encoder_bytes(sense, encoder, options) for sense, encoder in encoders.items())
    return max(found, default=0)


def _encoder_bytes(sense: str, encoder: Mapping[str, Any], options: Mapping[str, Any]) -> int:
    count = _AUDIO_POSITIONS if sense == "audio" else positions(encoder, options)
    width = int(encoder["width"])
    # Qwen2.5-VL's layers with windows have a mask of all positions by all, twice.
    mask = 6 * count**2 if encoder["windows"] else 0
    values = 3 * width + int(encoder["forward"])
    if options.get("flash_attention") == "off":
        values = max(values, 6 * width + int(encoder["heads"]) * count)
    return mask + 4 * count * values


def positions(encoder: Mapping[str, Any], options: Mapping[str, Any]) -> int:
    """Patches of the largest image."""
    kind = str(encoder["kind"])
    if kind in _MAX_TOKENS:
        tokens = int(options.get("image_max_tokens") or _MAX_TOKENS[kind])
        return tokens * (encoder["merge"] or _MERGES.get(kind, 1)) ** 2
    patch = encoder["patch_size"]
    return int(encoder["image_size"] // patch) ** 2 if patch else 0
