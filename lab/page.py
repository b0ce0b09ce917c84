"""The shipped workflows in ComfyUI's own page: load each in a browser, report what the page lost, save a screenshot.

Needs a Chromium or Chrome on the PATH (Debian: `apt-get install chromium`). No test depends on it.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.host import HOME, say
from lab.inside import host_tree
from lab.workflow import WORKFLOWS, needs

if TYPE_CHECKING:  # so that --help needs no environment
    from aiohttp import ClientWebSocketResponse

STARTED = 60  # seconds that a browser may take to start
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--window-size=1600,1000")
SETTINGS = {"Comfy.TutorialCompleted": "true", "Comfy.Workflow.ShowMissingModelsWarning": "false"}  # no dialog on top
LOAD = """(async flow => {
    while (!(window.app?.graph && app.extensionManager)) await new Promise(done => setTimeout(done, 500));
    await app.loadGraphData(flow);
    await new Promise(done => setTimeout(done, 3000));
    const there = new Map(app.graph.serialize().nodes.map(node => [node.id, node]));
    return flow.nodes.filter(node => !(node.type in LiteGraph.registered_node_types) || JSON.stringify(
        there.get(node.id)?.widgets_values ?? []) != JSON.stringify(node.widgets_values ?? [])).map(node => node.type);
})"""


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python3 -m lab page", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of workflows, without the number; else all")
    parser.add_argument("--nodes-2", action="store_true", help="draw the nodes with Nodes 2.0")
    parser.add_argument("--out", type=Path, default=HOME / "page", help="folder of the pictures")
    options = parser.parse_args(argv)
    settings = SETTINGS | ({"Comfy.VueNodes.Enabled": "true"} if options.nodes_2 else {})
    flows = [path for path in sorted(WORKFLOWS.glob("*.json")) if not needs(path)]
    flows = [path for path in flows if not options.names or path.stem[3:] in options.names]
    from lab.server import ComfyServer

    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        say(f"no browser is on the PATH ({', '.join(BROWSERS)}).")
        return 1
    with ComfyServer(host_tree()) as server, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [browser, *OPTIONS, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            port_file = Path(profile) / "DevToolsActivePort"
            return asyncio.run(_look(server.url, port_file, settings, flows, options.out))
        finally:
            process.terminate()
            process.wait()


async def _look(url: str, port_file: Path, settings: dict[str, str], flows: Sequence[Path], out: Path) -> int:
    from aiohttp import ClientSession

    async with asyncio.timeout(STARTED):
        while not (port := port_file.read_text().split() if port_file.is_file() else []):
            await asyncio.sleep(0.25)
    out.mkdir(parents=True, exist_ok=True)
    failed = False
    async with ClientSession() as session:
        for setting, value in settings.items():
            await session.post(f"{url}/settings/{setting}", data=value)
        async with session.get(f"http://127.0.0.1:{port[0]}/json/list") as answer:
            tab = next(tab for tab in await answer.json() if tab["type"] == "page")
        async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as socket:
            await _call(socket, "Page.navigate", url=url)
            await asyncio.sleep(5)
            for path in flows:
                script = {"expression": f"{LOAD}({path.read_text()})", "awaitPromise": True, "returnByValue": True}
                lost = (await _call(socket, "Runtime.evaluate", **script))["result"]["value"]
                picture = (await _call(socket, "Page.captureScreenshot"))["data"]
                (out / f"{path.stem}.png").write_bytes(base64.b64decode(picture))
                say(f"{path.stem}: " + (f"unknown or changed: {', '.join(lost)}" if lost else "as it was shipped"))
                failed |= bool(lost)
    print(out.resolve())
    return int(failed)


async def _call(socket: ClientWebSocketResponse, method: str, **parameters: Any) -> Any:
    """The answer to one command of the Chrome DevTools Protocol; events in between are ignored."""
    await socket.send_json({"id": 1, "method": method, "params": parameters})
    while (answer := await socket.receive_json()).get("id") != 1:
        continue
    return answer["result"]
