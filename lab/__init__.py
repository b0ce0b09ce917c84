"""The workbench: set-up, demo, tests and measurements. Not in the artists' package."""
