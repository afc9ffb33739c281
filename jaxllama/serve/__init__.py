"""The HTTP front end: sockets, access control, framing, dialects; uses the service, no engine."""
