"""Runs from Python: a script, a notebook.

    from flwr_dmml import open_run, simulate

    run = simulate(method="dmml-kd", num_nodes=12)
    run.rounds.plot(x="round", y="accuracy")

``simulate`` runs what the command of that name runs, with the same numbers for the same seed, and
returns the run; ``open_run`` opens one that is there; ``compare`` puts several side by side. The
names are those of :mod:`flwr_dmml`.
"""
