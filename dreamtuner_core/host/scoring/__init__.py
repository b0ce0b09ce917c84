"""The quality gate in the host: what measures a picture of a subject, and what the nodes ask of it."""
