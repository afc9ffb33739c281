"""The engine: slots, device state, compiled programs and the loop over them; token ids only."""
