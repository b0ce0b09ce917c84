"""The subject encoder in the host: loading its file, and its attention in the transformer blocks."""
