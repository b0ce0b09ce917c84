"""Subject tuning (section 3.3): a few hundred steps on one picture, with regular pictures to preserve its class."""
