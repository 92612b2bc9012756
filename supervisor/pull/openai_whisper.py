"""OpenAI's Whisper checkpoint (.pt) to whisper.cpp's ggml file in 16-bit floats, in plain Python.

A checkpoint is a zip of a pickle and raw tensors. The pickle is read by an unpickler that knows
four names and makes nothing else, and only after the file's checksum was compared.

Source of the layout: whisper.cpp's models/convert-pt-to-ggml.py; of the checkpoint: torch.save's
zip format; of the mel filters: numpy's .npy format.
"""

from __future__ import annotations

import base64
import collections
import io
import math
import pickle
import re
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from uml.protocol.errors import InvalidModel
from uml.supervisor.formats.whisper import MAGIC
from uml.supervisor.pull.place import Report

_DIMS = (
    *("n_vocab", "n_audio_ctx", "n_audio_state", "n_audio_head", "n_audio_layer"),
    *("n_text_ctx", "n_text_state", "n_text_head", "n_text_layer", "n_mels"),
)
_F32, _F16 = 0, 1
#: Storage class -> (struct's letter, bytes).
_STORAGES = {"HalfStorage": ("e", 2), "FloatStorage": ("f", 4)}
#: Kept in 32 bits although they have two dimensions.
_KEPT_FLOAT = ("encoder.positional_embedding", "decoder.positional_embedding")
_BIASES = ("encoder.conv1.bias", "encoder.conv2.bias")


@dataclass(frozen=True)
class _Tensor:
    """key: of its bytes in the zip. stride, offset: in elements."""

    kind: str
    key: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def convert(checkpoint: Path, filters: Path, tokens: Path, out: Path, report: Report) -> None:
    """Make `out`. filters: mel_filters.npz; tokens: a .tiktoken file.

    Raises: InvalidModel, when they are not what they should be.
    """
    try:
        with zipfile.ZipFile(checkpoint) as z, out.open("wb") as target:
            names = z.namelist()
            root = next(n for n in names if n.endswith("data.pkl")).removesuffix("data.pkl")
            found = _Unpickler(io.BytesIO(z.read(root + "data.pkl"))).load()
            dims, tensors = found["dims"], found["model_state_dict"]
            target.write(struct.pack("<12i", MAGIC, *(dims[k] for k in _DIMS), _F16))
            target.write(_filters(filters, dims["n_mels"]))
            target.write(_vocabulary(tokens))
            for done, (name, tensor) in enumerate(tensors.items()):
                _write(target, name, tensor, z.read(f"{root}data/{tensor.key}"))
                report("converting", done + 1, len(tensors))
    except (KeyError, ValueError, TypeError, AttributeError, StopIteration, struct.error) as e:
        raise InvalidModel(f"{checkpoint.name} is no Whisper checkpoint: {e!r}") from e
    except (pickle.UnpicklingError, zipfile.BadZipFile, EOFError) as e:
        raise InvalidModel(f"{checkpoint.name} is no Whisper checkpoint: {e}") from e


class _Unpickler(pickle.Unpickler):
    """Knows maps and tensors; anything else is refused before it is made."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if module == "torch" and name in _STORAGES:
            return name
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a checkpoint")

    def persistent_load(self, pid: Any) -> tuple[str, str]:
        _, kind, key, *_ = pid
        return str(kind), str(key)


def _rebuild(storage: tuple[str, str], offset: int, size: Any, stride: Any, *_: Any) -> _Tensor:
    return _Tensor(*storage, offset, tuple(size), tuple(stride))


def _filters(path: Path, mels: int) -> bytes:
    with zipfile.ZipFile(path) as z:
        raw = z.read(f"mel_{mels}.npy")
    if raw[:6] != b"\x93NUMPY":
        raise ValueError("the mel filters are no .npy file")
    (length,) = struct.unpack_from("<H" if raw[6] == 1 else "<I", raw, 8)
    start = (10 if raw[6] == 1 else 12) + length
    head = raw[:start].decode("latin-1")
    shape = re.search(r"'shape': \((\d+), (\d+)\)", head)
    if not shape or "'<f4'" not in head or "'fortran_order': False" not in head:
        raise ValueError("the mel filters have another form")
    return struct.pack("<2i", int(shape[1]), int(shape[2])) + raw[start:]


def _vocabulary(path: Path) -> bytes:
    lines = [line.split() for line in path.read_bytes().splitlines() if line.strip()]
    words = [base64.b64decode(line[0]) for line in lines]
    return struct.pack("<i", len(words)) + b"".join(struct.pack("<i", len(w)) + w for w in words)


def _write(target: BinaryIO, name: str, tensor: _Tensor, raw: bytes) -> None:
    """One tensor: dimensions, name, type, shape from the innermost on, data in rows."""
    letter, width = _STORAGES[tensor.kind]
    shape = [n for n in tensor.shape if n != 1]
    count = math.prod(tensor.shape)
    view = memoryview(raw).cast("H" if width == 2 else "I")
    data = b"".join(_rows(view, tensor.offset, tensor.shape, tensor.stride))
    if len(data) != count * width:
        raise ValueError(f"{name} is cut off")
    if name in _BIASES:
        shape.append(1)
    wanted = "f" if len(shape) < 2 or name in _BIASES or name in _KEPT_FLOAT else "e"
    if wanted != letter:
        data = struct.pack(f"<{count}{wanted}", *struct.unpack(f"<{count}{letter}", data))
    kind = _F32 if wanted == "f" else _F16
    text = name.encode()
    target.write(struct.pack("<3i", len(shape), len(text), kind))
    target.write(struct.pack(f"<{len(shape)}i", *reversed(shape)) + text + data)


def _rows(
    view: memoryview, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]
) -> Iterator[bytes]:
    """A tensor's elements in the order of its dimensions: some are stored transposed."""
    if not shape:
        yield view[offset : offset + 1].tobytes()
    elif len(shape) == 1:
        end = offset + (shape[0] - 1) * stride[0] + 1
        yield view[offset : end : stride[0]].tobytes()
    else:
        for i in range(shape[0]):
            yield from _rows(view, offset + i * stride[0], shape[1:], stride[1:])
