"""multipart/form-data: small fields, and one file that is spooled as it comes."""

from __future__ import annotations

from typing import Any

from aiohttp import BodyPartReader, web

from uml.protocol.errors import BadRequest, TooLarge, UnsupportedMediaType
from uml.supervisor.spool import Spooled

#: Bytes of one field that is not the file, and fields of one form.
_MAX_FIELD_BYTES = 64 * 1024
_MAX_FIELDS = 64
_CHUNK = 256 * 1024
_WORDS = {"true": True, "false": False, "1": True, "0": False}


async def read_form(
    request: web.Request,
    body: Spooled,
    limit_bytes: int,
    *,
    file: str = "file",
    numbers: tuple[str, ...] = (),
    flags: tuple[str, ...] = (),
) -> dict[str, Any]:
    """The fields, with the file's bytes in `body` and its name as the field's value. Names that
    end with `[]`, or come again, are lists. numbers, flags: fields that are turned into what they
    are as JSON; what is none stays text, for the reader to complain of.

    Raises: UnsupportedMediaType, TooLarge, BadRequest.
    """
    if request.content_type != "multipart/form-data":
        raise UnsupportedMediaType(
            f"the body's content type is {request.content_type}: send multipart/form-data, "
            f"with the audio as its part '{file}'"
        )
    if (request.content_length or 0) > limit_bytes + _MAX_FIELDS * _MAX_FIELD_BYTES:
        raise TooLarge(f"the upload is larger than {limit_bytes / 1e6:.0f} MB (`max_upload`)")
    found: dict[str, Any] = {}
    try:
        async for part in await request.multipart():
            if not isinstance(part, BodyPartReader):
                raise BadRequest("a form within the form is not understood")
            if len(found) >= _MAX_FIELDS:
                raise BadRequest(f"more than {_MAX_FIELDS} fields")
            if part.name == file:
                await _spool(part, body, file in found)
                found[file] = part.filename or file
            else:
                _add(found, part.name or "", await _text(part))
    except (ValueError, RuntimeError, AssertionError) as e:  # of aiohttp's parser
        raise BadRequest(f"the body is no multipart form: {e}") from None
    await body.seal()
    for name in numbers:
        if isinstance(found.get(name), str):
            found[name] = _number(found[name])
    for name in flags:
        if isinstance(found.get(name), str):
            found[name] = _WORDS.get(found[name].strip().lower(), found[name])
    return found


async def _spool(part: BodyPartReader, body: Spooled, again: bool) -> None:
    if again:
        raise BadRequest("one file at a time", param="file")
    while data := await part.read_chunk(_CHUNK):
        await body.write(data)


async def _text(part: BodyPartReader) -> str:
    data = bytearray()
    while chunk := await part.read_chunk():
        data += chunk
        if len(data) > _MAX_FIELD_BYTES:
            raise TooLarge(f"'{part.name}' is larger than {_MAX_FIELD_BYTES} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise BadRequest(f"'{part.name}' is not UTF-8", param=part.name) from None


def _add(found: dict[str, Any], name: str, value: str) -> None:
    plain = name.removesuffix("[]")
    if plain != name or plain in found:
        earlier = found.get(plain, [])
        found[plain] = [*(earlier if isinstance(earlier, list) else [earlier]), value]
    else:
        found[plain] = value


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
