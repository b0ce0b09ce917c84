"""What a node says of a picture where the host's save nodes take its metadata from, whatever a caller sent as those."""

from __future__ import annotations

from typing import Any


def note_on_node(node: Any, key: str, told: Any) -> None:
    """Beside a node's inputs. node: of the graph as it was queued."""
    if isinstance(node, dict):
        meta = node.get("_meta")
        node["_meta"] = (meta if isinstance(meta, dict) else {}) | {key: told}


def note_with_pictures(extra_pnginfo: Any, key: str, told: list[dict[str, Any]]) -> None:
    """Beside the page's own, each thing once. extra_pnginfo: what the page sent along, or None."""
    if isinstance(extra_pnginfo, dict):
        known = extra_pnginfo.get(key)
        known = known if isinstance(known, list) else []
        extra_pnginfo[key] = known + [one for one in told if one not in known]
