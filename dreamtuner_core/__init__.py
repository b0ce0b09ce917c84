"""The DreamTuner method (Hua et al., arXiv 2312.13691).

Only `dreamtuner_core.host` (and `pretraining`) import ComfyUI; everything else needs torch alone.
"""
