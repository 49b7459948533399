"""Hosted devices on a Ray cluster of two nodes that are told to be machines; run by a test."""

from ray.cluster_utils import Cluster
from spread_app import run

node = {"num_cpus": 1, "object_store_memory": 100_000_000}
cluster = Cluster(
    initialize_head=True, head_node_args={**node, "env_vars": {"FLWR_DMML_MACHINE": "a"}}
)
cluster.add_node(**node, env_vars={"FLWR_DMML_MACHINE": "b"})
cluster.wait_for_nodes()
try:
    for method in ("dpsgd", "dmml-kd", "qg-dsgdm"):
        how = {"couriers": "forward" if method == "dpsgd" else "off", "rounds": 4}
        assert run(method, 2, cluster.address, **how) == run(method, 0, **how), method
        print(method, "equal")
finally:
    cluster.shutdown()
