"""Slots, state, programs and the loop over them: speaks token ids only."""
