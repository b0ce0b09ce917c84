"""Text under a node, if a server is running."""

from __future__ import annotations

import logging
import sys

from comfy_execution.utils import get_executing_context


def say(text: str, node_id: str | None) -> None:
    """Show the text under the node; node_id None shows nothing."""
    server = sys.modules.get("server")  # the host's; there is none where its nodes run without one
    running = getattr(getattr(server, "PromptServer", None), "instance", None)
    if running is not None and node_id is not None:
        running.send_progress_text(text, node_id)


def warn(text: str) -> None:
    """Write a warning to the log, and show it under the running node."""
    logging.warning(text)
    context = get_executing_context()
    say(text, context.node_id if context else None)
