"""Pre-training of the subject encoder (section 3.1, appendix A), once for everybody: `python -m
dreamtuner_core.pretraining`.

Not for artists, and imported by no node: it needs the extra `[pretraining]`. docs/pretraining.md tells how to run it.
"""
