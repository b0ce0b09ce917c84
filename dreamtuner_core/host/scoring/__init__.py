"""The quality gate in the host: the image towers that measure a picture, and the scores of a batch."""
