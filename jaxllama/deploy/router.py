"""The router of Ray Serve for replicas: by prefix and by load.

Ray loads this class by its name into each gateway. Ray has a router by prefix of its own, but only
beside vLLM (`ray[llm]`); for each request it waits for an actor twice. Decides nothing: see
`prefixes.py`.
"""

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from jaxllama.deploy.parcel import Parcel
from jaxllama.deploy.prefixes import PrefixMap, rank

NOTHING = Parcel("GET", "/", (), b"")


class PrefixRouter(RequestRouter):  # type: ignore[misc] # Ray is not read by mypy
    """Chooses the replica that saw most of a prompt, unless others have much less to do."""

    def initialize_state(self, spread: int) -> None:
        """Set up the router, which has seen no prompt yet.

        A replica with over `spread` more open requests than the least busy one is asked only after
        the others, even if it has seen more of the prompt.
        """
        self._prefixes, self._spread = PrefixMap(), spread

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Return the candidate replicas in the order in which Ray has to ask them for a request.

        Each inner list holds one replica. `pending_request` is Ray's call with the request; None:
        replicas are ordered by load alone.
        """
        parcel = parcel_in(pending_request)
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # if all refuse
        by_name = {each.replica_id.unique_id: each for each in candidate_replicas}
        loads = {
            name: self.replica_queue_len_cache.get(each.replica_id) or 0
            for name, each in by_name.items()
        }
        matched = self._prefixes.matched(parcel.blocks)
        return [[by_name[name]] for name in rank(loads, matched, self._spread, parcel.avoid)]

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: object
    ) -> None:
        """Remember which replica got the prompt of a request."""
        del result
        self._prefixes.remember(parcel_in(pending_request).blocks, replica_id.unique_id)


def parcel_in(pending: PendingRequest | None) -> Parcel:
    """Return the client's request from `pending`, a call that Ray passes to a replica.

    If there is no call, or it does not come from a gateway, the result is an empty request.
    """
    first = pending.args[0] if pending is not None and pending.args else None
    return first if isinstance(first, Parcel) else NOTHING
