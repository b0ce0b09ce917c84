"""A small trial on your own checkpoint: what it costs, what it saves, how good it is and what is next, on one page."""
