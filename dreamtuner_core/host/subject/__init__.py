"""A subject in the host: from a picture or a file, its rights, and the memory of its features."""
