"""Talk to a running ComfyUI over its HTTP and websocket API."""

from __future__ import annotations

import asyncio
import io
import json
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

Graph = Mapping[str, Mapping[str, Any]]  # API format: node id -> {class_type, inputs}
Progress = Callable[[str, int, int], None]  # node id, steps done, all steps; 0 of 0 when the node begins


class ComfyError(RuntimeError):
    """The server could not do it; the text is its answer."""


class GraphRefused(ComfyError):
    """The graph did not pass the server's validation."""


class NodeFailed(ComfyError):
    """A node raised; the text is the node's own message."""

    def __init__(self, report: Mapping[str, Any]) -> None:
        self.node_id: str = report["node_id"]
        self.node_type: str = report["node_type"]
        self.message: str = report["exception_message"].strip()
        self.traceback = "".join(report.get("traceback", ()))
        super().__init__(f"{self.node_type} (node {self.node_id}): {self.message}")


class Interrupted(ComfyError):
    """The graph was stopped by an interrupt."""


@dataclass(frozen=True)
class Result:
    """The result of a graph: the `ui` part of each output node, by node id."""

    prompt_id: str
    outputs: Mapping[str, Mapping[str, Any]]


class ComfyClient:
    def __init__(self, url: str) -> None:
        self.url = url
        self.client_id = uuid.uuid4().hex

    def queue(self, graph: Graph, on_progress: Progress | None = None, timeout: float = 600.0) -> Result:
        """Run `graph` to its end. Call it from a thread without a running event loop. timeout: seconds.

        Raises ComfyError: GraphRefused, NodeFailed, Interrupted, or if the server does not finish.
        """
        try:
            return asyncio.run(asyncio.wait_for(self._queue(graph, on_progress), timeout))
        except asyncio.TimeoutError:
            self.interrupt()
            raise ComfyError(f"The graph did not finish within {timeout:.0f} s.") from None

    async def _queue(self, graph: Graph, on_progress: Progress | None) -> Result:
        import aiohttp

        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{self.url}/ws?clientId={self.client_id}", max_msg_size=0) as socket,
        ):
            answer = await asyncio.to_thread(self.post, "/prompt", {"prompt": graph, "client_id": self.client_id})
            prompt_id = answer["prompt_id"]
            if answer["node_errors"]:  # the server has begun with the outputs that passed
                await asyncio.to_thread(self.post, "/queue", {"delete": [prompt_id]})
                await asyncio.to_thread(self.interrupt)
                raise GraphRefused(_validation_errors(answer["node_errors"]))
            async for message in socket:
                if message.type != aiohttp.WSMsgType.TEXT:
                    continue  # binary messages are preview pictures
                event = json.loads(message.data)
                kind, data = event["type"], event["data"]
                if data.get("prompt_id") != prompt_id:
                    continue
                if kind == "execution_error":
                    raise NodeFailed(data)
                if kind == "execution_interrupted":
                    raise Interrupted(f"The graph was interrupted in node {data['node_id']} ({data['node_type']}).")
                if kind == "executing" and data["node"] is None:
                    return Result(prompt_id, await asyncio.to_thread(self._outputs, prompt_id))
                if on_progress and kind == "executing":
                    on_progress(data["node"], 0, 0)
                if on_progress and kind == "progress":
                    on_progress(data["node"], data["value"], data["max"])
        raise ComfyError("The server closed the connection before the graph was done.")

    def _outputs(self, prompt_id: str) -> dict[str, Any]:
        return self.get_json(f"/history/{prompt_id}")[prompt_id]["outputs"]

    def interrupt(self) -> None:
        self.post("/interrupt", {})

    def free(self) -> None:
        """Unload the models and clear every cached output, when the server is next idle."""
        self.post("/free", {"unload_models": True, "free_memory": True})

    def object_info(self) -> dict[str, Any]:
        return self.get_json("/object_info")

    def upload_image(self, path: Path, name: str | None = None) -> str:
        """Put a picture file into the server's input folder. Returns its name there, for LoadImage."""
        boundary = uuid.uuid4().hex
        name = name or path.name
        body = b"".join(
            f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"{extra}\r\n\r\n'.encode() + value + b"\r\n"
            for field, extra, value in (
                ("image", f'; filename="{name}"\r\nContent-Type: application/octet-stream', path.read_bytes()),
                ("overwrite", "", b"true"),
            )
        )
        kind = f"multipart/form-data; boundary={boundary}"
        answer = self._request("/upload/image", body + f"--{boundary}--\r\n".encode(), kind)
        return json.loads(answer)["name"]

    def image_bytes(self, image: Mapping[str, str]) -> bytes:
        """The file behind one entry of an output's `images`."""
        return self._request("/view?" + urllib.parse.urlencode(dict(image)))

    def images(self, result: Result, node_id: str) -> list[Image.Image]:
        entries = result.outputs[node_id]["images"]
        return [Image.open(io.BytesIO(self.image_bytes(entry))).convert("RGB") for entry in entries]

    def get(self, path: str) -> bytes:
        return self._request(path)

    def get_json(self, path: str) -> Any:
        return json.loads(self.get(path))

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        answer = self._request(path, json.dumps(body).encode())
        return json.loads(answer) if answer else None

    def _request(self, path: str, body: bytes | None = None, content_type: str = "application/json") -> bytes:
        request = urllib.request.Request(self.url + path, data=body, headers={"Content-Type": content_type})
        try:
            with _opener.open(request, timeout=60) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            raise _refusal(path, error.code, error.read()) from None
        except (urllib.error.URLError, OSError) as error:
            raise ComfyError(f"The server at {self.url} does not answer: {error}") from None


_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the server is local: never use a proxy


def _refusal(path: str, code: int, body: bytes) -> ComfyError:
    try:
        answer = json.loads(body)
        whole = answer["error"]
        return GraphRefused(_validation_errors(answer["node_errors"]) or f"{whole['message']}: {whole['details']}")
    except (ValueError, KeyError, TypeError):
        return ComfyError(f"{path} answered {code}: {body[:300].decode(errors='replace')}")


def _validation_errors(nodes: Mapping[str, Any]) -> str:
    return "; ".join(
        f"{node['class_type']} (node {node_id}): {error['message']}: {error['details']}"
        for node_id, node in nodes.items()
        for error in node["errors"]
    )
