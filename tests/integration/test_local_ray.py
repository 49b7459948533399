"""Ray started beside the imports: taken by whoever connects, stopped where nobody does."""

import os
import subprocess
import sys
from pathlib import Path

CODE = """
from flwr_dmml.engine.local_ray import ahead, take

with ahead(2):
    from flwr_dmml.engine.cluster import connect
    import ray

    cluster = connect("", 2)
    print(ray.cluster_resources()["CPU"], cluster.cpus_per_worker, take(2))
    cluster.disconnect()
    print(ray.is_initialized())
with ahead(1):
    cluster = connect("", 2)  # needs more than there will be
    print(ray.cluster_resources()["CPU"])
    cluster.disconnect()
with ahead(1):
    pass
print(ray.is_initialized())
with ahead(0):
    print(take(1))
"""


def test_a_ray_that_is_started_ahead():
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, timeout=180, check=False
    )
    assert done.stdout.splitlines() == ["2.0 1 False", "False", "2.0", "False", "False"]
    assert done.returncode == 0
    assert "SIGTERM" not in done.stderr


def test_a_temporary_folder_whose_path_is_too_long(tmp_path: Path):
    folder = tmp_path / ("of-a-batch-system" * 6)
    folder.mkdir()
    env = {**os.environ, "TMPDIR": str(folder)}
    env.pop("RAY_TMPDIR", None)
    code = "from flwr_dmml.engine.local_ray import start; start(1)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=env,
        timeout=180,
        check=False,
    )
    assert done.returncode == 1
    assert f"EngineError: TMPDIR = '{folder}'" in done.stderr and "set RAY_TMPDIR" in done.stderr
