"""A world of individuals: procedural things whose every attribute is known.

A kind (kinds/) is a table of shapes, colours, a pattern and a printed mark; an individual is one choice of each
(10^7 and more a kind), a view is a pose, a turn and a light. Drawn by Pillow; the same generator, the same bytes.
"""

from .captions import all_captions_words, caption_of
from .compose import Picture, Placed, compose, compose_wide
from .individual import Individual, is_held_out, sample_individual
from .kind import GROUPS, Attribute, Kind
from .kinds import KINDS
from .marks import GLYPHS
from .palette import COLOURS
from .scenes import SCENES
from .view import View, draw, sample_view

__all__ = [
    "COLOURS", "GLYPHS", "GROUPS", "KINDS", "SCENES",
    "Attribute", "Individual", "Kind", "Picture", "Placed", "View",
    "all_captions_words", "caption_of", "compose", "compose_wide", "draw",
    "is_held_out", "sample_individual", "sample_view",
]  # fmt: skip
