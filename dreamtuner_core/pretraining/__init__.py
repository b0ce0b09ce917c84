"""Pre-training of the subject encoder (section 3.1, appendix A), once for everybody: `python -m
dreamtuner_core.pretraining`.

No node imports it, and it needs the extra `[pretraining]`. See docs/pretraining.md.
"""
