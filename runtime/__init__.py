"""Generation from an engine directory: session -> schedule -> executor -> sampling.

``llm`` is the public API; ``session`` owns the sequences; ``schedule`` decides; ``executors`` run
forwards; ``sampling`` chooses tokens. Nothing here reads a checkpoint.
"""
