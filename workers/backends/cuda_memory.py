"""Takes real memory of an NVIDIA device by the driver's own library: no toolkit, no framework.

Source: the CUDA driver API's reference (cuInit, cuDevicePrimaryCtxRetain, cuMemAlloc, cuMemsetD8).
"""

from __future__ import annotations

import ctypes

from uml.protocol.errors import LoadFailed


def take(count: int, ordinal: int = 0) -> int:
    """Allocate and touch `count` bytes on the device that CUDA numbers so; the address. They are
    held until the process ends. Raises: LoadFailed with CUDA's own number for what is wrong."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as e:
        raise LoadFailed(f"there is no NVIDIA driver here: {e}") from e

    def call(name: str, *arguments: object) -> None:
        status = getattr(cuda, name)(*arguments)
        if status:
            words = "out of memory" if status == 2 else f"error {status}"
            raise LoadFailed(f"{name} on CUDA device {ordinal}: {words}")

    device, context, address = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
    call("cuInit", 0)
    call("cuDeviceGet", ctypes.byref(device), ordinal)
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    call("cuCtxSetCurrent", context)
    call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(count))
    call("cuMemsetD8_v2", address, ctypes.c_ubyte(1), ctypes.c_size_t(count))
    call("cuCtxSynchronize")
    return address.value
