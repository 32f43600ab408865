"""Serving with Triton: the model repository, and the Python model inside it.

``triton_repo`` writes the repository; ``tensors`` is its interface. Triton's stub process then
imports ``triton_model``, which reads a request (``requests``), follows it (``service``), answers
(``responses``) and reports (``triton_metrics``). Nothing here decides what a step does: all of it
is a client of ``LLM``.
"""
