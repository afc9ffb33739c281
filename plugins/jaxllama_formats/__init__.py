"""First-party prompt formats, one file each, built on the interface that any plugin uses."""
