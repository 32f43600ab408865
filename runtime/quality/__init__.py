"""What sparse attention costs in quality: ``trt-resa eval``, and ``trt-resa tune``.

``samples``, ``retrieval``, ``chains``, ``texts`` and ``prompt_file`` make the tasks, without a
download; ``forcing`` shows a model's logits along a given text; ``scoring`` and ``drift`` turn
outputs into figures; ``evaluate`` runs tasks by settings, ``tune`` searches settings.
"""
