"""Griffin models (RecurrentGemma, Griffin, Hawk) in JAX."""
