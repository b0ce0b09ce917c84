"""Pre-training of the subject encoder (section 3.1, appendix A): `python -m dreamtuner_core.pretraining`.

It is done once for a family of base models. No node imports it, and it needs the extra `[pretraining]`. See
docs/pretraining.md.
"""
