"""The subject encoder (section 3.1, appendix A): its network, its image tower, its file, and IP-Adapters."""
