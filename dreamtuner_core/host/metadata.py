"""Notes of the nodes in the metadata that the host's save nodes write, whatever a caller sent as metadata."""

from __future__ import annotations

from typing import Any


def note_on_node(node: Any, key: str, note: Any) -> None:
    """Add a note to a node, beside its inputs. node: of the graph as it was queued."""
    if isinstance(node, dict):
        meta = node.get("_meta")
        node["_meta"] = (meta if isinstance(meta, dict) else {}) | {key: note}


def note_with_pictures(extra_pnginfo: Any, key: str, notes: list[dict[str, Any]]) -> None:
    """Add notes to the page's own metadata, each one once. extra_pnginfo: the page's metadata, or None."""
    if isinstance(extra_pnginfo, dict):
        known = extra_pnginfo.get(key)
        known = known if isinstance(known, list) else []
        extra_pnginfo[key] = known + [note for note in notes if note not in known]
