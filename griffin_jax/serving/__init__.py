"""An OpenAI-compatible server over the engine; `experiments.serve` runs it.

Nothing here is imported by the rest of the package, and all but `settings` needs the extra [serve].
"""
