"""A line of text under a node, where a server runs."""

from __future__ import annotations

import sys


def say(text: str, node_id: str | None) -> None:
    """Show the text under the node. node_id: None shows nothing."""
    server = sys.modules.get("server")  # the host's; there is none where its nodes run without one
    running = getattr(getattr(server, "PromptServer", None), "instance", None)
    if running is not None and node_id is not None:
        running.send_progress_text(text, node_id)
