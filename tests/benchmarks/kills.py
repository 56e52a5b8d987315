"""Kill processes of a cluster at random, many times, and see whether anything is lost.

    python -m tests.benchmarks.kills --kills 100

Two nodes, the service, and one job after another on real films. At random moments one of these gets SIGKILL: an actor
that works on sources, the job's driver, the raylet of the second node, the whole second node, the service. Every job
must end as succeeded, with the bytes of an undisturbed run. Prints a line for every kill and what it saw in the end;
exit code 1 if a job failed or a dataset differs.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from pipelines.dataset import Dataset
from tests.pipelines.service_rig import Rig
from tests.pipelines.test_job import content
from tests.pipelines.test_service_jobs import write_films

KINDS = {"worker": 5, "driver": 3, "service": 3, "raylet": 1, "node": 1}
"""What is killed, and how often in proportion: a node takes half a minute to come back."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--films", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pause", type=float, default=6.0, help="mean seconds between kills")
    parser.add_argument("--minutes", type=float, default=240.0, help="start no further job after so long")
    options = parser.parse_args()
    which, killed, jobs, faults = random.Random(options.seed), Counter[str](), 0, list[str]()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="clipmill-") as name:
        folder = Path(name)
        films = write_films(folder / "films", options.films)
        with Rig(folder, films, running=1) as rig:
            rig.wait(rig.submit("undisturbed"), seconds=3600)
            expected = content(Dataset(folder / "data" / "undisturbed"))
            print(f"{time.monotonic() - began:.0f} s: an undisturbed run is done", flush=True)
            while sum(killed.values()) < options.kills and time.monotonic() - began < 60 * options.minutes:
                jobs += 1
                # A film counts as crashing after so many attempts; here it is not the film's fault.
                job = rig.submit(f"job-{jobs}", resources={"attempts": 100})
                deaths = done = 0  # deaths of the driver since a film was finished
                while rig.state(job) in ("queued", "starting", "running"):
                    time.sleep(which.expovariate(1 / options.pause))
                    if sum(killed.values()) >= options.kills:
                        rig.wait(job, seconds=3600)
                        break
                    kind = which.choices(list(KINDS), list(KINDS.values()))[0]
                    before, done = done, rig.client.progress(job)["sources_done"]
                    deaths = 0 if done > before else deaths
                    if kind == "driver" and deaths == 2:
                        continue  # a third without a finished film in between ends the job, as it should
                    if getattr(rig, f"kill_{kind}")(which):
                        killed[kind] += 1
                        deaths += kind == "driver"
                        print(f"{time.monotonic() - began:.0f} s: {kind} killed, {done} films done", flush=True)
                found = rig.client.job(job)
                if found["state"] != "succeeded":
                    faults.append(f"{job}: {found['state']}: {found['message']}")
                elif (theirs := content(Dataset(folder / "data" / job))) != expected:
                    differing = [key for key in expected.keys() | theirs.keys() if expected.get(key) != theirs.get(key)]
                    faults.append(f"{job}: differs in {', '.join(sorted(differing)[:5])}")
                else:
                    rig.client.delete(job)
                print(
                    f"{time.monotonic() - began:.0f} s: {job} {found['state']}, {found['attempt']} attempts", flush=True
                )
    print(json.dumps({"killed": dict(killed), "jobs": jobs, "films": options.films, "faults": faults}, indent=1))
    sys.exit(1 if faults or sum(killed.values()) < options.kills else 0)


if __name__ == "__main__":
    main()
