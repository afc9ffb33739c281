"""Choosing a token: samplers, their knobs, and the draw. Knows rows; no requests, no slots."""
