"""What llama.cpp says: errors and warnings go to stderr, sizes of buffers are read off."""

from __future__ import annotations

import re
import sys
from collections import deque
from collections.abc import Sequence
from typing import Any

import llama_cpp.llama_cpp as lib

_DEBUG, _WARNING, _ERROR, _CONTINUED = 1, 3, 4, 5
#: "load_tensors:   CPU_Mapped model buffer size =    92.09 MiB"
_BUFFER = re.compile(r":\s+(\S+)\s+(model|KV|RS|compute|output)\s+buffer size\s*=\s*([\d.]+) MiB")
#: What a load without its vocabulary says each time (`reading`).
_MEANT = b" dummy tokens"
#: Buffers on devices; "CUDA_Host" is RAM.
_ACCELERATOR = re.compile(r"(?:CUDA|ROCm|Vulkan|MTL|Metal)(\d*)")


class Log:
    """Install with `catch`; keep the object alive as long as the library is used."""

    def __init__(self) -> None:
        self._level = 0
        self._errors: deque[str] = deque(maxlen=8)
        #: (buffer's name, what it is for) -> bytes
        self.buffers: dict[tuple[str, str], int] = {}
        self._callback = lib.llama_log_callback(self._take)

    def catch(self) -> None:
        lib.llama_log_set(self._callback, None)

    def why(self) -> str:
        """The last errors, for people."""
        return "; ".join(self._errors)

    def size(self, purpose: str) -> int:
        return sum(n for (_, what), n in self.buffers.items() if what == purpose)

    def memory(self, devices: Sequence[str] = ()) -> dict[str, int]:
        """Device -> bytes, as the supervisor names devices (those we see, in our order); "mapped"
        are weights in files, which the kernel may take back."""
        found: dict[str, int] = {}
        for (buffer, _), size in self.buffers.items():
            device = _device(buffer, devices)
            found[device] = found.get(device, 0) + size
        return found

    def _take(self, level: int, text: bytes, _: Any) -> None:
        level = self._level if level == _CONTINUED else level
        self._level = level
        if level == _DEBUG or _MEANT in text:  # the former are two thousand lines of a load
            return
        line = text.decode("utf-8", "replace")
        if level in (_WARNING, _ERROR):
            sys.stderr.write(line)
            sys.stderr.flush()
            if level == _ERROR and line.strip():
                self._errors.append(line.strip())
        elif match := _BUFFER.search(line):
            name, what, size = match.groups()
            key = name, what
            self.buffers[key] = self.buffers.get(key, 0) + int(float(size) * 1024 * 1024)


def _device(buffer: str, devices: Sequence[str]) -> str:
    if buffer.endswith("_Mapped"):
        return "mapped"
    if match := _ACCELERATOR.fullmatch(buffer):
        index = int(match[1] or 0)
        return devices[index] if index < len(devices) else buffer.lower()
    return "ram"
