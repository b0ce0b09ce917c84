"""The tables that the host and all packs share during a call: their types here, their keys where they are used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

Options = dict[str, Any]

Patch = Callable[[Tensor, Tensor, Tensor, Options], Tensor]
"""The host's attn1 replacement: (q, k, v, extra_options) -> [B, N, C], all after projection."""
