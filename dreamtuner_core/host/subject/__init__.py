"""A subject in the host: from a picture or a file, and its rights."""
