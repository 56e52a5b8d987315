"""However Ray ends, or does not, the process that started it ends in order and says so."""

import subprocess
import sys

# In a process of its own: Ray is one for a process, and the other tests have one.
_SCRIPT = """
import os, signal
os.environ["RAY_AUTH_MODE"] = "disabled"
import ray
from ray._private import worker
from pipelines.cluster import end, start

start(1, include_dashboard=False, object_store_memory=80 << 20)
(server,) = worker._global_node.all_processes["gcs_server"]
goodbye = ray.shutdown
ray.shutdown = lambda: (os.kill(os.getpid(), signal.SIGINT), server.process.wait(), goodbye())
end(patience_s=1.0)
print("ended", ray.is_initialized())
"""


def test_a_goodbye_that_is_not_answered_is_cut_short_even_when_ctrl_c_is_pressed_again() -> None:
    run = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, timeout=120)
    assert "ended False" in run.stdout, run.stderr


_SIGNALS = """
import os, signal, time
os.environ["RAY_AUTH_MODE"] = "disabled"
from pipelines.cluster import cluster

def interrupt(number, frame):
    raise KeyboardInterrupt

signal.signal(signal.SIGTERM, interrupt)
with cluster(cpus=1):
    from ray._private import worker
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    (raylet,) = worker._global_node.all_processes["raylet"]
    raylet.process.kill()
    time.sleep(60)
"""


def test_a_signal_is_an_interruption_and_the_death_of_ray_is_said_at_once() -> None:
    run = subprocess.run([sys.executable, "-c", _SIGNALS], capture_output=True, text=True, timeout=120)
    assert run.returncode == 69, run.stderr
    assert run.stdout.startswith("interrupted\n")
    assert run.stderr.strip().endswith("what is finished is kept: the same command goes on")
    assert "***" not in run.stderr


def test_a_cluster_that_is_not_there_is_said_at_once() -> None:
    script = "from pipelines.cluster import cluster\nwith cluster('127.0.0.1:9'): pass"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert "Ray at 127.0.0.1:9 cannot be reached: [Errno 111] Connection refused" in run.stderr
