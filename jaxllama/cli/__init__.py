"""The command line, on top of the Python API: one file per command, loaded when it is asked for."""
