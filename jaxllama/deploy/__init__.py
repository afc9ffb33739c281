"""Replicas of a server on a Ray cluster: `jaxllama deploy`.

A replica (`replica.py`) is a whole server, in an actor of Ray Serve. A gateway (`gateway.py`) takes
the requests of clients as they are, and passes them to replicas as parcels; Ray's router asks
`prefixes.py` which replica. Only `application.py` and `router.py` import Ray.
"""
