"""How a token is chosen: samplers, their knobs, and the draw. Rows only; no requests, no slots."""
