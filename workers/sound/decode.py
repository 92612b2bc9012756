"""An audio file of any usual kind to 16 kHz mono, piece by piece.

What came is a stranger's file. Only formats that hold sound themselves are opened: playlists name
other files and addresses, which would be read for whoever asked. Its packets are counted before any
is decoded, so that what a header says of the length is not relied on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import IO, Any

import av
import av.error
import av.logging
import numpy as np

from uml.protocol.errors import BadRequest, TooLarge

RATE = 16000
#: ffmpeg's names of the demuxers that may be used.
_FORMATS = (
    "wav,w64,aiff,au,caf,mp3,aac,ac3,eac3,flac,ogg,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,"
    "amr,asf,avi,flv,mpeg,mpegts,wv,tta,ape"
)
#: `mov,mp4,...` and `matroska,webm` are one demuxer each; these say in their header how long the
#: sound is, others are estimated by ffmpeg.
_SAY_LENGTH = ("w64", "aiff", "caf", "flac", "mov", "matroska")
_MAX_RATE, _MIN_RATE, _MAX_CHANNELS = 384_000, 1000, 16
#: Packets in a row that nothing can be made of.
_MAX_BROKEN = 2000
#: A file that says more than this much longer (seconds, and share) than what is in it, is cut off.
_SLACK_S, _SLACK = 2.0, 0.1
#: What programs write that did not know the length when they began.
_UNKNOWN_SIZES = (0, 0x7FFFFFFF, 0x7FFFF000, 0xFFFFFFFF)

av.logging.set_level(av.logging.PANIC)


def length_of(file: IO[bytes], limit_s: float) -> float:
    """Seconds of sound in a file, by its packets.

    Raises: BadRequest, when there is none; TooLarge.
    """
    seconds, packets = 0.0, 0
    with _opened(file) as container:
        stream = _stream(container)
        claimed = _claimed(file, container, stream)
        if claimed > limit_s:
            raise _too_long(claimed, limit_s)
        try:
            for packet in container.demux(stream):
                if packet.size:
                    packets += 1
                    seconds += float((packet.duration or 0) * (packet.time_base or 0))
                if seconds > limit_s:
                    raise _too_long(seconds, limit_s)
        except av.error.FFmpegError:
            pass  # what was there until here may do
    if not packets:
        raise BadRequest("the file holds no sound", param="file")
    if seconds and claimed > seconds * (1 + _SLACK) + _SLACK_S:
        raise BadRequest(
            f"the file says that it lasts {claimed:.0f} s and holds {seconds:.0f} s: "
            "it is cut off, or not what it says",
            param="file",
        )
    return seconds


def samples(
    file: IO[bytes], limit_s: float, stopped: Callable[[], bool]
) -> Iterator[np.ndarray[Any, Any]]:
    """The sound as float32 in pieces. stopped: looked at in between.

    Raises: BadRequest, when it cannot be decoded; TooLarge.
    """
    room, found = int(limit_s * RATE), False
    for piece in _decoded(file, stopped):
        if stopped():
            return
        room -= len(piece)
        if room < 0:
            raise _too_long(limit_s + 1, limit_s)
        found = True
        yield piece
    if not found and not stopped():
        raise BadRequest("the file's sound cannot be decoded: it is corrupt", param="file")


def bare(
    file: IO[bytes], rate: int, limit_s: float, stopped: Callable[[], bool]
) -> Iterator[np.ndarray[Any, Any]]:
    """s16le mono samples without a container. Raises: BadRequest, TooLarge."""
    resampler = _resampler() if rate != RATE else None
    room = int(limit_s * rate)
    while not stopped() and (data := file.read(2 * rate)):
        values = np.frombuffer(data[: len(data) // 2 * 2], np.int16)
        room -= len(values)
        if room < 0:
            raise _too_long(limit_s + 1, limit_s)
        if resampler is None:
            yield values.astype(np.float32) / 32768
            continue
        frame = av.AudioFrame.from_ndarray(values.reshape(1, -1), format="s16", layout="mono")
        frame.sample_rate = rate
        yield from _arrays(resampler.resample(frame))
    if resampler is not None:
        yield from _arrays(resampler.resample(None))


def _opened(file: IO[bytes]) -> Any:
    """Raises: BadRequest."""
    file.seek(0)
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "", "enable_drefs": "0"}
    try:
        return av.open(file, options=options, metadata_errors="ignore")
    except (av.error.FFmpegError, ValueError, OSError) as e:
        why = getattr(e, "strerror", None) or "unknown"
        raise BadRequest(
            f"the file is no audio that can be read ({why}): "
            "wav, mp3, m4a, ogg, opus, flac and webm can",
            param="file",
        ) from None


def _stream(container: Any) -> Any:
    """Raises: BadRequest."""
    stream = next(iter(container.streams.audio), None)
    if stream is None:
        what = "only a picture" if container.streams.video else "no sound track"
        raise BadRequest(f"the file has {what}: nothing can be heard in it", param="file")
    context = stream.codec_context
    if context is None:
        raise BadRequest("the file's sound is of a kind that is not known", param="file")
    rate, channels = context.sample_rate or 0, context.channels or 0
    # 0: only decoding will tell.
    if (rate and not _MIN_RATE <= rate <= _MAX_RATE) or channels > _MAX_CHANNELS:
        raise BadRequest(
            f"the file says it has {channels} channels of {rate} samples a second: "
            f"up to {_MAX_CHANNELS} of {_MIN_RATE} to {_MAX_RATE} are accepted",
            param="file",
        )
    return stream


def _claimed(file: IO[bytes], container: Any, stream: Any) -> float:
    """Seconds that the header says; 0 where it says nothing."""
    kind = container.format.name.split(",")[0]
    if kind == "wav":
        return _claimed_by_wav(file)
    if kind not in _SAY_LENGTH or not stream.duration:
        return 0.0
    return max(0.0, float(stream.duration * stream.time_base))


def _claimed_by_wav(file: IO[bytes]) -> float:
    """What ffmpeg corrects in silence. Source: Multimedia Programming Interface and Data
    Specifications 1.0, WAVE: chunks of a name, a length and their data."""
    at = file.tell()
    try:
        file.seek(0)
        head = file.read(1 << 16)
    finally:
        file.seek(at)
    form, data = head.find(b"fmt "), head.find(b"data")
    if form < 0 or data < form or len(head) < data + 8:
        return 0.0
    per_second, size = (int.from_bytes(head[i : i + 4], "little") for i in (form + 16, data + 4))
    return size / per_second if per_second and size not in _UNKNOWN_SIZES else 0.0


def _decoded(file: IO[bytes], stopped: Callable[[], bool]) -> Iterator[np.ndarray[Any, Any]]:
    resampler, broken = _resampler(), 0
    with _opened(file) as container:
        stream = _stream(container)
        stream.thread_type = "NONE"
        packets = container.demux(stream)
        while not stopped() and broken < _MAX_BROKEN:
            try:
                packet = next(packets, None)
                if packet is None:
                    break
                for frame in packet.decode():
                    broken = 0
                    if frame.sample_rate > _MAX_RATE or frame.sample_rate < _MIN_RATE:
                        raise BadRequest("the file's sound changes to a rate that is none")
                    frame.pts = None  # gaps and jumps are no sound
                    try:
                        found = resampler.resample(frame)
                    except ValueError:  # it goes on in another form
                        yield from _arrays(resampler.resample(None))
                        resampler = _resampler()
                        found = resampler.resample(frame)
                    yield from _arrays(found)
            except av.error.EOFError:
                break
            except av.error.FFmpegError:
                broken += 1  # a player would go on, too
        yield from _arrays(resampler.resample(None))


def _resampler() -> Any:
    return av.AudioResampler(format="flt", layout="mono", rate=RATE)


def _arrays(frames: Any) -> Iterator[np.ndarray[Any, Any]]:
    for frame in frames:
        if frame is not None and frame.samples:
            yield frame.to_ndarray().reshape(-1)


def _too_long(seconds: float, limit_s: float) -> TooLarge:
    return TooLarge(
        f"the file lasts {seconds / 60:.0f} minutes or more, and {limit_s / 60:.0f} are accepted "
        "(`max_audio`): cut it into pieces",
        param="file",
    )
