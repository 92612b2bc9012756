"""A BERT sentence encoder (safetensors) to GGUF with Q8_0 matrices.

    python convert_bert.py FOLDER OUT NAME

Run by file with the llama_cpp environment's Python, which has numpy; imported by nobody.
Source of the layout: ggml's docs/gguf.md; of the tensor names and the tokenizer's keys:
llama.cpp's convert_hf_to_gguf.py (BertModel); of Q8_0: ggml-quants.c.
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np

_U32, _I32, _F32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
_TYPE_F32, _TYPE_Q8_0 = 0, 8
_ALIGN = 32
_SPECIAL = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
_NORMAL, _CONTROL, _UNUSED = 1, 3, 5
_RENAMED = [
    ("embeddings.LayerNorm", "token_embd_norm"),
    ("embeddings.position_embeddings", "position_embd"),
    ("embeddings.token_type_embeddings", "token_types"),
    ("embeddings.word_embeddings", "token_embd"),
    ("encoder.layer.", "blk."),
    ("attention.output.LayerNorm", "attn_output_norm"),
    ("attention.output.dense", "attn_output"),
    ("attention.self.query", "attn_q"),
    ("attention.self.key", "attn_k"),
    ("attention.self.value", "attn_v"),
    ("intermediate.dense", "ffn_up"),
    ("output.LayerNorm", "layer_output_norm"),
    ("output.dense", "ffn_down"),
]
#: Matrices that stay float: they are looked up, not multiplied with.
_KEPT_FLOAT = ("position_embd.weight", "token_types.weight")


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def pair(key: str, kind: int, value: Any) -> bytes:
    formats = {_U32: "<I", _I32: "<i", _F32: "<f", _BOOL: "<?"}
    data = text(value) if kind == _STRING else struct.pack(formats[kind], value)
    return text(key) + struct.pack("<I", kind) + data


def array(key: str, kind: int, values: list[Any]) -> bytes:
    head = text(key) + struct.pack("<IIQ", _ARRAY, kind, len(values))
    if kind == _STRING:
        return head + b"".join(map(text, values))
    return head + struct.pack(f"<{len(values)}i", *values)


def vocabulary(path: Path) -> tuple[list[str], list[int]]:
    """WordPiece to llama.cpp's form: words begin with U+2581, continuations lose their ##."""
    words = path.read_text(encoding="utf-8").split("\n")
    if words[-1] == "":
        words.pop()
    tokens, kinds = [], []
    for word in words:
        if word in _SPECIAL or word.startswith("[unused"):
            tokens.append(word)
            kinds.append(_CONTROL if word in _SPECIAL else _UNUSED)
        else:
            tokens.append(word[2:] if word.startswith("##") else "\u2581" + word)
            kinds.append(_NORMAL)
    return tokens, kinds


def read_tensors(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Source: the safetensors format: u64 header length, JSON header, data."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    kinds = {"F32": np.float32, "F16": np.float16, "I64": np.int64}
    found = {}
    for name, info in header.items():
        start, end = info["data_offsets"]
        raw = data[8 + length + start : 8 + length + end]
        found[name] = np.frombuffer(raw, kinds[info["dtype"]]).reshape(info["shape"])
    return found


def rename(name: str) -> str | None:
    name = name.removeprefix("bert.")
    if name.startswith("pooler") or name.endswith("position_ids"):
        return None
    for old, new in _RENAMED:
        name = name.replace(old, new)
    return name


def q8_0(values: np.ndarray[Any, Any]) -> bytes:
    """Blocks of 32: a float16 scale and 32 int8, rounded half away from zero."""
    blocks = values.astype(np.float32).reshape(-1, 32)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    with np.errstate(divide="ignore"):
        inverse = np.where(scale == 0, np.float32(0), 1 / scale)
    scaled = blocks * inverse
    size = np.abs(scaled)
    whole = np.floor(size)
    rounded = np.sign(scaled) * (whole + np.floor(2 * (size - whole)))
    scales = scale.astype(np.float16).view(np.uint8)
    return np.concatenate([scales, rounded.astype(np.int8).view(np.uint8)], axis=1).tobytes()


def convert(folder: Path, out: Path, name: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    tokens, kinds = vocabulary(folder / "vocab.txt")
    if len(tokens) != config["vocab_size"]:
        sys.exit(f"vocab.txt has {len(tokens)} words, config.json says {config['vocab_size']}")
    unknown, sep, pad, mask, cls = map(tokens.index, ("[UNK]", "[SEP]", "[PAD]", "[MASK]", "[CLS]"))
    pairs = [
        pair("general.architecture", _STRING, "bert"),
        pair("general.name", _STRING, name),
        pair("general.license", _STRING, "apache-2.0"),
        pair("general.file_type", _U32, 7),
        pair("bert.context_length", _U32, config["max_position_embeddings"]),
        pair("bert.embedding_length", _U32, config["hidden_size"]),
        pair("bert.block_count", _U32, config["num_hidden_layers"]),
        pair("bert.feed_forward_length", _U32, config["intermediate_size"]),
        pair("bert.attention.head_count", _U32, config["num_attention_heads"]),
        pair("bert.attention.layer_norm_epsilon", _F32, config["layer_norm_eps"]),
        pair("bert.attention.causal", _BOOL, False),
        pair("bert.pooling_type", _U32, 1),
        pair("tokenizer.ggml.model", _STRING, "bert"),
        pair("tokenizer.ggml.pre", _STRING, "bert-bge"),
        array("tokenizer.ggml.tokens", _STRING, tokens),
        array("tokenizer.ggml.token_type", _I32, kinds),
        pair("tokenizer.ggml.token_type_count", _U32, config["type_vocab_size"]),
        pair("tokenizer.ggml.unknown_token_id", _U32, unknown),
        pair("tokenizer.ggml.seperator_token_id", _U32, sep),  # llama.cpp's own spelling
        pair("tokenizer.ggml.padding_token_id", _U32, pad),
        pair("tokenizer.ggml.mask_token_id", _U32, mask),
        pair("tokenizer.ggml.cls_token_id", _U32, cls),
        pair("tokenizer.ggml.bos_token_id", _U32, cls),
        pair("tokenizer.ggml.eos_token_id", _U32, sep),
    ]
    infos, blobs, offset = [], [], 0
    for original, values in read_tensors(folder / "model.safetensors").items():
        tensor = rename(original)
        if tensor is None:
            continue
        quantised = values.ndim == 2 and tensor not in _KEPT_FLOAT
        data = q8_0(values) if quantised else values.astype(np.float32).tobytes()
        shape = values.shape[::-1]
        infos.append(
            text(tensor)
            + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
            + struct.pack("<IQ", _TYPE_Q8_0 if quantised else _TYPE_F32, offset)
        )
        data += b"\0" * (-len(data) % _ALIGN)
        blobs.append(data)
        offset += len(data)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(pairs)) + b"".join(pairs + infos)
    out.write_bytes(head + b"\0" * (-len(head) % _ALIGN) + b"".join(blobs))


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
