"""Analysis of steps compiled for TPUs: memory, matrix products, communication between chips. No TPU is needed."""
