"""Subject tuning in the host (section 3.3): from the settings to the files."""
