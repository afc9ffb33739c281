"""What the bodies for accelerators share."""
