"""The quality gate: how good pictures of a subject are, and which of them pass."""
