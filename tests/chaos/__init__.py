"""An attack on a running server: `make chaos`. No test runs it; see `python -m tests.chaos -h`."""
