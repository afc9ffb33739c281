"""The HTTP front end: sockets, guards, framing and dialects; knows the service and no engine."""
