"""The workbench: set-up, demo, tests and figures. Not shipped to artists."""
