"""A Ray that waits for ever for its own server, as it ends, is ended all the same."""

import subprocess
import sys

# In a process of its own: Ray is one for a process, and the other tests have one.
_SCRIPT = """
import os
os.environ["RAY_AUTH_MODE"] = "disabled"
import ray
from ray._private import worker
from pipelines.cluster import end, start

start(1, include_dashboard=False, object_store_memory=80 << 20)
(server,) = worker._global_node.all_processes["gcs_server"]
goodbye = ray.shutdown
ray.shutdown = lambda: (server.process.wait(), goodbye())
end(patience_s=1.0)
print("ended", ray.is_initialized())
"""


def test_a_goodbye_that_is_not_answered_is_cut_short() -> None:
    run = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, timeout=120)
    assert "ended False" in run.stdout, run.stderr
