"""The DreamTuner method (Hua et al., arXiv 2312.13691).

This ground floor imports torch and never comfy; `dreamtuner_core.host` is the only room that does.
"""
