"""CNI (containernetworking/cni, SPEC.md 1.1): pods are attached by plugins that the node brings.

What is decided is in modules without I/O: ``configs``, ``versions``, ``results``, ``calls``, ``answers``. ``chain`` has
the order of calls; ``plugins``, ``cache`` and ``networks`` touch programs and files; ``wires`` is what the rest of the
daemon sees.
"""
