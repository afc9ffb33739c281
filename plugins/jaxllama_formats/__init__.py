"""First-party prompt formats: one file each, written against the same socket as anyone's."""
