"""A checkpoint becomes whisper.cpp's file; a pickle that wants more than tensors gets nothing."""

from __future__ import annotations

import base64
import collections
import io
import os
import pickle
import struct
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import pytest

from uml.protocol.errors import InvalidModel
from uml.supervisor.pull.openai_whisper import convert

DIMS = {
    "n_mels": 2,
    "n_vocab": 51864,
    "n_audio_ctx": 4,
    "n_audio_state": 2,
    "n_audio_head": 1,
    "n_audio_layer": 1,
    "n_text_ctx": 4,
    "n_text_state": 2,
    "n_text_head": 1,
    "n_text_layer": 1,
}


class Tensor:
    """Pickles as torch's would. numbers: of its storage, float16."""

    def __init__(self, key: str, numbers: list[float], shape: Any, stride: Any, offset: int = 0):
        self.key, self.numbers = key, numbers
        self.shape, self.stride, self.offset = shape, stride, offset

    def __reduce__(self) -> Any:
        module: Any = sys.modules["torch._utils"]
        return module._rebuild_tensor_v2, (Storage(self), self.offset, self.shape, self.stride)


class Storage:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class Pickler(pickle.Pickler):
    def persistent_id(self, thing: Any) -> Any:
        if isinstance(thing, Storage):
            half: Any = sys.modules["torch"]
            return "storage", half.HalfStorage, thing.tensor.key, "cpu", len(thing.tensor.numbers)
        return None


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough of its names to pickle by."""
    top, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

    class HalfStorage:
        pass

    def _rebuild_tensor_v2(*_: Any) -> None: ...

    for thing, module in ((HalfStorage, top), (_rebuild_tensor_v2, utils)):
        thing.__module__, thing.__qualname__ = module.__name__, thing.__name__
        setattr(module, thing.__name__, thing)
    monkeypatch.setitem(sys.modules, "torch", top)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)


def checkpoint(folder: Path, tensors: dict[str, Tensor], extra: Any = None) -> list[Path]:
    raw = io.BytesIO()
    state = collections.OrderedDict(tensors)
    Pickler(raw, 2).dump(
        {"dims": DIMS, "model_state_dict": state} | ({"x": extra} if extra else {})
    )
    with zipfile.ZipFile(folder / "m.pt", "w") as z:
        z.writestr("m/data.pkl", raw.getvalue())
        for t in tensors.values():
            z.writestr(f"m/data/{t.key}", struct.pack(f"<{len(t.numbers)}e", *t.numbers))
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }"
    npy = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(24)
    with zipfile.ZipFile(folder / "mel.npz", "w") as z:
        z.writestr("mel_2.npy", npy)
    words = b"".join(base64.b64encode(w) + b" 0\n" for w in (b"!", b"ab"))
    (folder / "words.tiktoken").write_bytes(words)
    return [folder / "m.pt", folder / "mel.npz", folder / "words.tiktoken", folder / "out.bin"]


def test_tensors_keep_their_values_whatever_way_they_lie(torch: None, tmp_path: Path) -> None:
    paths = checkpoint(
        tmp_path,
        {
            "plain": Tensor("0", [1, 2, 3, 4, 5, 6], (2, 3), (3, 1)),
            "turned": Tensor("1", [1, 4, 2, 5, 3, 6], (2, 3), (1, 2)),
            "part": Tensor("2", [9, 9, 7, 8], (2,), (1,), 2),
            "encoder.conv1.bias": Tensor("3", [1.5, 2.5], (2,), (1,)),
        },
    )
    convert(*paths, lambda *_: None)
    data = paths[-1].read_bytes()
    assert data[:4] == b"lmgg" and struct.unpack_from("<12i", data)[10:] == (2, 1)
    matrix = struct.pack("<6e", 1, 2, 3, 4, 5, 6)
    assert struct.pack("<3i2i", 2, 5, 1, 3, 2) + b"plain" + matrix in data
    assert struct.pack("<3i2i", 2, 6, 1, 3, 2) + b"turned" + matrix in data
    assert struct.pack("<3ii", 1, 4, 0, 2) + b"part" + struct.pack("<2f", 7, 8) in data
    bias = struct.pack("<3i2i", 2, 18, 0, 1, 2) + b"encoder.conv1.bias"
    assert bias + struct.pack("<2f", 1.5, 2.5) in data
    assert struct.pack("<2i", 2, 3) + bytes(24) + struct.pack("<i", 2) in data


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch never",)


def test_pickle_that_would_run_something_is_refused(torch: None, tmp_path: Path) -> None:
    paths = checkpoint(tmp_path, {}, extra=Evil())
    with pytest.raises(InvalidModel, match="system has no place in a checkpoint"):
        convert(*paths, lambda *_: None)


def test_checkpoint_that_is_cut_off_or_none_is_refused(torch: None, tmp_path: Path) -> None:
    paths = checkpoint(tmp_path, {"a": Tensor("0", [1, 2], (4,), (1,))})
    with pytest.raises(InvalidModel, match="cut off"):
        convert(*paths, lambda *_: None)
    paths[0].write_bytes(b"PK no zip")
    with pytest.raises(InvalidModel, match="no Whisper checkpoint"):
        convert(*paths, lambda *_: None)
