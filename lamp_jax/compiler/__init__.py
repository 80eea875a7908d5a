"""What a TPU's compiler makes of a step: its memory, its products, what its chips tell each other. No TPU is needed."""
