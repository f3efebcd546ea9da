"""The least that starting a group of workers on a cluster costs: actors, the imports of Ray Train, a gloo group."""

import socket
import time

import ray

# Ray Train's workers have environment variables of their own, so that Ray starts a new process for each, too.
RUNTIME = {"env_vars": {"BARE_START": "1"}}


@ray.remote(num_cpus=1, runtime_env=RUNTIME)
class BareWorker:
    def address(self):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return f"tcp://127.0.0.1:{probe.getsockname()[1]}"

    def load(self):
        import ray.train  # noqa: F401
        import torch  # noqa: F401

    def join(self, address, rank, world):
        import torch
        import torch.distributed as dist

        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
        ones = torch.ones(1)
        dist.all_reduce(ones)
        return ones.item()


def start(world):
    """Seconds until the processes of `world` actors answer, have imported, and have added up a tensor in their group.

    All are counted from the call. The actors are gone when this returns.
    """
    began = time.monotonic()
    workers = [BareWorker.remote() for _ in range(world)]
    try:
        address = ray.get([worker.address.remote() for worker in workers])[0]
        processes = time.monotonic() - began
        ray.get([worker.load.remote() for worker in workers])
        imports = time.monotonic() - began
        sums = ray.get([worker.join.remote(address, rank, world) for rank, worker in enumerate(workers)])
        ready = time.monotonic() - began
        assert sums == [world] * world, sums
        return {"processes": processes, "imports": imports, "ready": ready}
    finally:
        for worker in workers:
            ray.kill(worker)
