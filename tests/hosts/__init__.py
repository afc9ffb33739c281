"""Tests of a model on several hosts: processes of this machine with a device or two each."""
