"""First-party samplers: one file each, written against the same socket as anyone's."""
