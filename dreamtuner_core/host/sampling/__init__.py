"""One sampling run: its state, the reference pass, and the self-attentions that read the reference."""
