"""Run the sharded engine on a Ray cluster of two nodes on this machine; not a test by itself."""

from apps_sharded import counting
from flwr.app import Message, RecordDict
from ray.cluster_utils import Cluster

from flwr_dmml.engine import server_identity, sharded_grid

node = {"num_cpus": 1, "object_store_memory": 100_000_000}
cluster = Cluster(initialize_head=True, head_node_args=node)
cluster.add_node(**node)
cluster.wait_for_nodes()
try:
    with (
        server_identity(1),
        sharded_grid(counting, 4, {}, workers=2, address=cluster.address) as grid,
    ):
        letters = [Message(RecordDict(), n, "train") for n in grid.get_node_ids()]
        replies = grid.send_and_receive(letters)
        machines = {reply.content.config_records["where"]["machine"] for reply in replies}
        print(len(machines), "machines")
        payloads = {f"p{i}": reply.content["own"] for i, reply in enumerate(replies)}
        letters = [Message(RecordDict(payloads), n, "train") for n in grid.get_node_ids()]
        for reply in grid.send_and_receive(letters):
            heard = reply.content.metric_records["about"]
            assert sorted(heard[f"p{i}"] for i in range(4)) == [50e3, 100e3, 150e3, 200e3], heard
        print("all heard")
finally:
    cluster.shutdown()
