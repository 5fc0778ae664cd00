"""Compiling for TPUs without a TPU: does it fit, what does it communicate, how long might it take."""
