"""Guards that drive the call: they may run it more than once, or not at all."""
