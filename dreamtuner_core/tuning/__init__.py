"""Subject tuning (section 3.3): a few hundred steps on one picture, held to its class by regular pictures."""
