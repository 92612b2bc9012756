"""What can be asked of a supervisor: one table of calls for the blocking and the async client.

A method here only describes its call and hands it to `_send`, which answers with the value in
`Client` and with an awaitable of it in `AsyncClient`; hence the `Any`.
"""

from __future__ import annotations

import abc
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote, urlencode

from uml.supervisor.client_files import Form

#: Told (stage, fraction or None) while a model loads.
OnProgress = Callable[[str, float | None], None]


@dataclass(frozen=True)
class Call:
    """answer: "json" = one value; "stream" = an iterator of them; "done" = progress events are
    told to `on_progress` and the value of the last event is the answer; "text" = plain text;
    "lines" = an iterator of its lines as they come; "bytes" = a `Binary`; "download" = its bytes
    as they come. form: sent instead of a JSON body."""

    method: str
    path: str
    body: dict[str, Any] | None = None
    answer: Literal["json", "stream", "done", "text", "lines", "bytes", "download"] = "json"
    on_progress: OnProgress | None = None
    form: Form | None = None

    def content(self) -> tuple[bytes | None, str]:
        """(the body, its media type)."""
        if self.form is not None:
            return self.form.content, self.form.media_type
        body = None if self.body is None else json.dumps(self.body).encode()
        return body, "application/json"

    def progress(self, data: dict[str, Any]) -> None:
        if self.on_progress:
            fraction = data.get("fraction")
            stage = str(data.get("stage") or data.get("state") or "loading")
            self.on_progress(stage, fraction if isinstance(fraction, (int, float)) else None)


class Api(abc.ABC):
    """The calls. Every one raises UmlError; Unreachable when nobody answers."""

    def __init__(self) -> None:
        self.chat = _Chat(self)
        self.completions = _Completions(self)
        self.embeddings = _Embeddings(self)
        self.models = _Models(self)
        self.audio = _Audio(self)

    @abc.abstractmethod
    def _send(self, call: Call) -> Any: ...

    def load(
        self,
        model: str,
        *,
        keep_alive: float | str | None = None,
        options: dict[str, Any] | None = None,
        dry_run: bool = False,
        on_progress: OnProgress | None = None,
    ) -> Any:
        """Load `model` and answer with its worker's status; dry_run: only what it would take.
        keep_alive: seconds or "10m", negative for ever. options: num_ctx, draft_model."""
        body = {"model": model, "keep_alive": keep_alive, "options": options}
        return self._load("/load", body, dry_run, on_progress)

    def swap(
        self,
        model: str,
        *,
        force: bool = False,
        keep_alive: float | str | None = None,
        options: dict[str, Any] | None = None,
        dry_run: bool = False,
        on_progress: OnProgress | None = None,
    ) -> Any:
        """Unload what is not pinned and load `model`. force: cut running answers. The rest: as
        `load`."""
        body: dict[str, Any] = {"model": model, "force": force or None, "keep_alive": keep_alive}
        body["options"] = options
        return self._load("/swap", body, dry_run, on_progress)

    def _load(
        self, path: str, body: dict[str, Any], dry_run: bool, on_progress: OnProgress | None
    ) -> Any:
        if dry_run:
            return self._send(Call("POST", path, _given(body) | {"dry_run": True}))
        # Streamed even when nobody listens: a load may take longer than any read timeout.
        body = _given(body) | {"stream": True}
        return self._send(Call("POST", path, body, "done", on_progress))

    def unload(self, model: str | None = None, *, all: bool = False, force: bool = False) -> Any:
        """Unload one model, or all; answers with the receipts."""
        body = {"model": model, "all": all or None, "force": force or None}
        return self._send(Call("POST", "/unload", _given(body)))

    def profiles(self) -> Any:
        """Named sets of models: `profiles` is name -> models."""
        return self._send(Call("GET", "/profiles"))

    def use_profile(
        self,
        name: str,
        *,
        keep_alive: float | str | None = None,
        on_progress: OnProgress | None = None,
    ) -> Any:
        """Load all models of a profile, or none: `workers`."""
        body = {"name": name, "keep_alive": keep_alive}
        return self._load("/profiles/use", body, False, on_progress)

    def status(self) -> Any:
        """Devices, workers, queues, residue and the last receipts."""
        return self._send(Call("GET", "/status"))

    def stats(self, days: int = 30, model: str | None = None) -> Any:
        """Requests, tokens, errors and speeds by day and model."""
        query = urlencode(_given({"days": days, "model": model}))
        return self._send(Call("GET", f"/stats?{query}"))

    def logs(self, model: str | None = None, lines: int = 100, *, format: str | None = None) -> Any:
        """The last lines of the supervisor's log, or of a model's worker, as one text. format:
        "json" for an object a line."""
        query = urlencode(_given({"model": model, "lines": lines, "format": format}))
        return self._send(Call("GET", f"/logs?{query}", answer="text"))

    def follow_logs(
        self, model: str | None = None, lines: int = 100, *, format: str | None = None
    ) -> Any:
        """The same lines, and then each as it comes, until the supervisor ends."""
        query = urlencode(_given({"model": model, "lines": lines, "format": format}))
        return self._send(Call("GET", f"/logs/stream?{query}", answer="lines"))

    def events(self, *, live: bool = False) -> Any:
        """What happens, as it happens, as records with `event`, `level`, `at` and fields. live:
        also `live` once a second, with what `status` has."""
        return self._send(Call("GET", "/events?live=1" if live else "/events", answer="stream"))

    def reload_config(self, *, dry_run: bool = False, toml: str | None = None) -> Any:
        """Let the supervisor read its configuration anew; dry_run: only what that would do, with
        `toml` in place of what its file says."""
        body = {"dry_run": dry_run or None, "toml": toml}
        return self._send(Call("POST", "/config/reload", _given(body)))

    def health(self) -> Any:
        return self._send(Call("GET", "/health"))

    def shutdown(self, *, force: bool = False) -> Any:
        """Ask the supervisor to end. It lets running answers finish first, unless `force`."""
        return self._send(Call("POST", "/shutdown", _given({"force": force or None})))


class _Group:
    def __init__(self, api: Api) -> None:
        self._send = api._send

    def _create(self, path: str, body: dict[str, Any]) -> Any:
        streams = bool(body.get("stream"))
        return self._send(Call("POST", path, body, "stream" if streams else "json"))


class _Chat:
    def __init__(self, api: Api) -> None:
        self.completions = _ChatCompletions(api)


class _ChatCompletions(_Group):
    def create(
        self, *, model: str, messages: Sequence[Any], stream: bool = False, **params: Any
    ) -> Any:
        """params: OpenAI's (max_tokens, temperature, tools ...) and `keep_alive`."""
        body = {"model": model, "messages": list(messages), "stream": stream} | params
        return self._create("/v1/chat/completions", body)


class _Completions(_Group):
    def create(
        self, *, model: str, prompt: str | list[int], stream: bool = False, **params: Any
    ) -> Any:
        body = {"model": model, "prompt": prompt, "stream": stream} | params
        return self._create("/v1/completions", body)


class _Embeddings(_Group):
    def create(self, *, model: str, input: str | Sequence[Any], **params: Any) -> Any:
        texts = input if isinstance(input, str) else list(input)
        return self._create("/v1/embeddings", {"model": model, "input": texts} | params)


class _Audio:
    def __init__(self, api: Api) -> None:
        self.transcriptions = _Transcriptions(api, "/v1/audio/transcriptions")
        self.translations = _Transcriptions(api, "/v1/audio/translations")
        self.speech = _Speech(api, "bytes")
        self.voices = _Voices(api)


class _Transcriptions(_Group):
    def __init__(self, api: Api, path: str) -> None:
        super().__init__(api)
        self._path = path

    def create(self, *, model: str, file: Any, stream: bool = False, **params: Any) -> Any:
        """What is heard. file: a path, bytes, an open file, or (name, one of those). params:
        OpenAI's (response_format, language, prompt ...) and `keep_alive`; forms that are no JSON
        are answered as text. stream: iterates over events."""
        fields = {"model": model, "stream": stream or None} | params
        plain = params.get("response_format") in ("text", "srt", "vtt")
        answer: Any = "stream" if stream else "text" if plain else "json"
        return self._send(Call("POST", self._path, answer=answer, form=Form(fields, file)))


class _Speech(_Group):
    def __init__(self, api: Api, answer: Literal["bytes", "download"]) -> None:
        super().__init__(api)
        self._answer: Literal["bytes", "download"] = answer
        if answer == "bytes":
            #: The same call, whose answer's bytes can be taken as they come (`iter_bytes`).
            self.with_streaming_response = _Speech(api, "download")

    def create(self, *, model: str, input: str, voice: str | None = None, **params: Any) -> Any:
        """A sound file as bytes, with `.content`, `.write_to_file(path)` as OpenAI's client has."""
        body = _given({"model": model, "input": input, "voice": voice} | params)
        return self._send(Call("POST", "/v1/audio/speech", body, self._answer))


class _Voices(_Group):
    def list(self) -> Any:
        return self._send(Call("GET", "/v1/audio/voices"))


class _Models(_Group):
    def list(self) -> Any:
        return self._send(Call("GET", "/v1/models"))

    def retrieve(self, model: str) -> Any:
        return self._send(Call("GET", f"/v1/models/{quote(model)}"))

    def delete(self, model: str) -> Any:
        """Delete the model's files; a conflict while it is loaded."""
        return self._send(Call("DELETE", f"/v1/models/{quote(model)}"))


def _given(body: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in body.items() if v is not None}
