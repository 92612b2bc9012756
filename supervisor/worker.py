"""One worker process: spawn, speak, kill the whole tree, reap.

`Worker` decides nothing; it reports to its listener: `on_message`, `on_chunks` (the hot path,
raw items) and, exactly once, `on_exit`. All methods belong to the event loop's thread, also the
spawn: the parent-death signal fires when the *thread* that spawned ends.

Liveness: nothing here waits on the worker's goodwill. Reading never stops; writing is buffered,
with a lane for control frames that overtakes bulk ones; a kill returns within its deadline even
when a process is stuck in the kernel, and says which.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import subprocess
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from uml.protocol import frames, messages
from uml.protocol.errors import ProtocolError
from uml.supervisor import tree
from uml.supervisor.patience import Patience
from uml.supervisor.worker_log import WorkerLog

#: What is read at once. One place for all workers, as none of it is kept there: a new buffer for
#: each read would be mapped from the kernel and given back, which is half of a short read's cost.
_INCOMING = memoryview(bytearray(256 * 1024))
#: From the supervisor's own environment a worker gets these and nothing else: no secrets.
_PASSED = frozenset(("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR"))
#: ... and what finds accelerators and their libraries.
_PASSED_PREFIXES = ("LD_LIBRARY_", "CUDA_", "NVIDIA_", "HIP_", "ROCR_", "ROCM_")


#: unshare(1) cannot die of the SIGKILL that its child died of, and complains instead.
_UNSHARE_SAW_SIGKILL = "unshare: sigprocmask unblock failed"


class Listener(Protocol):
    """Whom a worker reports to."""

    def on_message(self, worker: Worker, message: messages.Message) -> None: ...

    def on_chunks(self, worker: Worker, items: list[Any]) -> None: ...

    def on_exit(self, worker: Worker, how: str) -> None: ...


@dataclass(frozen=True)
class KillReport:
    """pids: all that belonged to the tree. stuck: those that would not die. ms: kill to reaped."""

    pids: tuple[int, ...]
    stuck: tuple[int, ...]
    ms: float


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """The environment a worker starts with: built, not copied."""
    kept = {k: v for k, v in os.environ.items() if k in _PASSED or k.startswith(_PASSED_PREFIXES)}
    return kept | dict(extra)


class Worker:
    """argv: the interpreter and its arguments. extra: environment beyond the common part.
    cancel_s: how long it may take to confirm a cancel before it is held to be broken."""

    def __init__(
        self,
        id: str,
        argv: Sequence[str],
        extra: Mapping[str, str],
        listener: Listener,
        log: WorkerLog,
        cancel_s: float = 10.0,
    ) -> None:
        self.id = id
        self.cancel_s = cancel_s
        self.token = secrets.token_hex(16)
        self.log = log
        self.spawned_at = time.monotonic()
        self.heard_at = self.spawned_at
        self.exit: str | None = None
        self._argv, self._extra, self._listener = list(argv), dict(extra), listener
        self._decoder = frames.Decoder()
        self._control: deque[bytes] = deque()
        self._bulk: deque[Iterator[bytes]] = deque()
        self._sending = memoryview(b"")
        self._launcher = self._inner = 0
        self._namespaced = False
        self._seen: dict[int, float] = {}
        self._reaped = asyncio.Event()
        self._fds: list[int] = []

    # --- spawning --------------------------------------------------------------------------

    def spawn(self) -> None:
        """Start the process. Raises: OSError when that is impossible."""
        self._loop = asyncio.get_running_loop()
        prefix = tree.namespace_prefix()
        self._namespaced = bool(prefix)
        env = environment(self._extra) | {tree.TOKEN: self.token}
        if self._namespaced:
            env["UML_PARENT_PID"] = str(os.getpid())
        ours, theirs = socket.socketpair()
        err_read, err_write = os.pipe()
        try:
            process = subprocess.Popen(
                [*prefix, *self._argv],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=err_write,
                env=env,
                cwd="/",
                start_new_session=True,
            )
        except OSError:
            ours.close()
            os.close(err_read)
            raise
        finally:
            theirs.close()
            os.close(err_write)
        self._launcher = process.pid
        self._note([process.pid])
        process.returncode = 0  # Popen must not wait for it: the pidfd below does
        ours.setblocking(False)
        os.set_blocking(err_read, False)
        self._socket, self._stderr = ours, err_read
        self._pidfd = os.pidfd_open(process.pid)
        self._loop.add_reader(self._pidfd, self._exited)
        self._loop.add_reader(ours.fileno(), self._readable)
        self._loop.add_reader(err_read, self._read_stderr)

    @property
    def launcher(self) -> int:
        """The pid that we spawned: the worker itself, or what holds its namespace."""
        return self._launcher

    @property
    def pid(self) -> int:
        """The worker's own pid as this machine sees it, also after its end."""
        if self._namespaced and not self._inner:
            self._inner = next(iter(tree.children(self._launcher)), 0)
        return self._inner or self._launcher

    def pids(self) -> list[int]:
        """The living tree, the launcher included."""
        self._note([self._launcher, *tree.descendants(self._launcher)])
        return tree.living(self._members())

    def ever(self) -> frozenset[int]:
        """All pids that were seen to belong to the tree, dead ones too: a device may still hold
        memory in their name."""
        return frozenset(self._seen)

    def started(self) -> dict[int, float]:
        """When each of them started: only with that is a pid somebody."""
        return dict(self._seen)

    def _note(self, pids: Iterable[int]) -> None:
        for pid in pids:
            started = tree.start_time(pid)
            if started is not None:
                self._seen[pid] = started

    def _members(self) -> list[int]:
        """Those of the tree that exist, zombies included: a zombie's other threads may still be
        giving back its memory. A pid that was given to somebody else since does not count."""
        return [pid for pid, started in self._seen.items() if tree.start_time(pid) == started]

    def remains(self) -> list[int]:
        """Kill again and reap those who would not die; who of them is still there."""
        tree.send_kill(self._members())
        tree.reap(self._seen)
        return self._members()

    # --- speaking --------------------------------------------------------------------------

    def send(self, message: messages.Message) -> None:
        """Queue a control frame; a dead worker's is dropped, its exit is reported anyway."""
        self._control.append(messages.pack(message))
        self._flush()

    def send_bulk(self, packed: Iterable[bytes]) -> None:
        """Queue frames that control frames may overtake. Each is asked for when the one before is
        gone, so that what waits in memory is one frame, however much there is to send; several
        such queues take turns."""
        self._bulk.append(iter(packed))
        self._flush()

    def _next_frame(self) -> bytes | None:
        if self._control:
            return self._control.popleft()
        while self._bulk:
            frame = next(self._bulk[0], None)
            if frame is not None:
                self._bulk.rotate(-1)
                return frame
            self._bulk.popleft()
        return None

    def _flush(self) -> None:
        if self.exit is not None or not hasattr(self, "_socket"):
            return
        try:
            while True:
                if not self._sending:
                    frame = self._next_frame()
                    if frame is None:
                        self._loop.remove_writer(self._socket.fileno())
                        return
                    self._sending = memoryview(frame)
                self._sending = self._sending[self._socket.send(self._sending) :]
        except BlockingIOError:
            self._loop.add_writer(self._socket.fileno(), self._flush)
        except OSError:
            self._loop.remove_writer(self._socket.fileno())

    def _readable(self) -> None:
        try:
            count = self._socket.recv_into(_INCOMING)
        except BlockingIOError:
            return
        except OSError:
            count = 0
        if not count:
            # Its pipe is closed, so it is of no use, whether it still runs or not.
            self._loop.remove_reader(self._socket.fileno())
            self._loop.call_later(0.2, self._lost, "closed its pipe")
            return
        self.heard_at = time.monotonic()
        try:
            for data_map in self._decoder.feed(_INCOMING[:count]):
                if data_map.get("t") == "chunks":
                    self._listener.on_chunks(self, data_map["items"])
                else:
                    self._listener.on_message(self, messages.parse(data_map))
        except (ProtocolError, KeyError, TypeError, ValueError, IndexError) as e:
            self._loop.remove_reader(self._socket.fileno())
            self._lost(f"broke the protocol: {e}")

    def _read_stderr(self) -> None:
        try:
            data = os.read(self._stderr, 65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self.log.write(data)
        else:
            self._loop.remove_reader(self._stderr)

    def _exited(self) -> None:
        self._loop.remove_reader(self._pidfd)
        try:
            status = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            status = None
        if status is None:
            how = "ended"
        elif status.si_code == os.CLD_EXITED:
            how = f"ended with exit code {status.si_status}"
        else:
            how = f"was killed by {signal.Signals(status.si_status).name}"
        self._drain()
        if self._namespaced and self.log.drop_last(_UNSHARE_SAW_SIGKILL):
            how = "was killed by SIGKILL"
        self._reaped.set()
        self._lost(how)

    def _drain(self) -> None:
        """Hear what it said last: that is still in the pipes."""
        for _ in range(256):
            if self.exit is not None or not self._has_data():
                break
            self._readable()
        for _ in range(64):
            before = self.log.total
            self._read_stderr()
            if self.log.total == before:
                break

    def _has_data(self) -> bool:
        try:
            return bool(self._socket.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    def _lost(self, how: str) -> None:
        if self.exit is None:
            self.exit = how
            self._control.clear()
            self._bulk.clear()
            self._loop.remove_writer(self._socket.fileno())
            self._listener.on_exit(self, how)

    # --- killing ---------------------------------------------------------------------------

    async def kill(self, deadline_s: float = 10.0) -> KillReport:
        """SIGKILL the whole tree and reap it. When this returns nothing of it runs, save the pids
        named as stuck (in the kernel beyond `deadline_s`)."""
        started, patience = time.monotonic(), Patience()
        pause = 0.001
        while True:
            tree.reap(self._seen.keys() - {self._launcher})
            self._note([self._launcher, *tree.descendants(self._launcher)])
            if self._reaped.is_set():
                # Its orphans have come home to us.
                self._note(tree.strays(self.token, self._launcher))
            members = self._members()
            elapsed = patience.waited()
            if (not members and self._reaped.is_set()) or elapsed > deadline_s:
                break
            inner = [pid for pid in members if pid != self._launcher]
            # The launcher ends by itself once its namespace is empty, and then all of it is.
            patient = self._namespaced and inner and elapsed < deadline_s / 2
            tree.send_kill(inner if patient else members)
            if self._reaped.is_set():
                await asyncio.sleep(pause)
            else:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._reaped.wait(), pause)
            pause = min(0.02, pause * 1.5)
        self.close()
        ms = (time.monotonic() - started) * 1000
        return KillReport(tuple(sorted(self._seen)), tuple(sorted(members)), ms)

    def close(self) -> None:
        """Let go of the pipes; the process must have been killed."""
        if not hasattr(self, "_socket"):
            return
        self._lost("was killed")
        for fd in (self._socket.fileno(), self._stderr, self._pidfd):
            self._loop.remove_reader(fd)
        self._socket.close()
        os.close(self._stderr)
        os.close(self._pidfd)
        del self._socket
        self.log.close()
