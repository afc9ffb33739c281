"""First-party samplers: one file each, built on the interface that any plugin uses."""
