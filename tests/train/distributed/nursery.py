"""Processes that torchrun would start, forked from one that has imported torch: a run of two starts in no time.

`python nursery.py` reads runs as JSON, a list of dictionaries, from its input; it carries them out one after the other
and prints how each process ended. `together` does that from a test.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path

HERE = Path(__file__).parent
SECONDS = 600
"""After which a run is killed for good; it takes some, and many where others have the processor."""


def together(runs, *, python=sys.executable, source=HERE.parents[2] / "src"):
    """Carry out runs; of each, how its processes ended: a list of status and what they wrote to stderr."""
    done = subprocess.run(
        [python, HERE / "nursery.py"],
        input=json.dumps(runs, default=str),
        env=os.environ | {"PYTHONPATH": f"{source}:{HERE}:{HERE.parent}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=sum(run.get("seconds", SECONDS) for run in runs) + SECONDS,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def environment(rank, count, port):
    local = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {name: str(value) for name, value in local.items()}


def child(run, rank, port, errors):
    """One process of a run."""
    os.environ.update(environment(rank, run.get("count", 1), port))
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    import accidents

    status = 1
    try:
        status = accidents.main(
            rank,
            **{
                name: value
                for name, value in run.items()
                if name not in ("count", "port", "only", "patience", "kill", "seconds")
            },
        )
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(status or 0)


def carry_out(run, folder, number):
    """Fork the processes of a run and wait for them, as torchrun does: when one fails, the others are ended."""
    port, children = run.get("port") or free_port(), {}
    mine = range(run.get("count", 1)) if "only" not in run else [run["only"]]
    for rank in mine:
        pid = os.fork()
        if not pid:
            child(run, rank, port, folder / f"{number}-{rank}")
        children[pid] = rank
    ended = wait(children, run)
    return [{"status": ended[rank], "error": (folder / f"{number}-{rank}").read_text()} for rank in mine]


def wait(children, run):
    """How each of the processes ended, by rank; some are killed on the way, if the run says so."""
    ended, began, failed, killing = {}, time.monotonic(), None, run.get("kill")

    def kill(to):
        for pid, rank in children.items():
            if rank not in ended and to in (rank, -1):
                os.kill(pid, signal.SIGKILL)

    while len(ended) < len(children):
        pid, status = os.waitpid(-1, os.WNOHANG)
        now = time.monotonic()
        if pid:
            ended[children[pid]] = os.waitstatus_to_exitcode(status)
            failed = now if status and failed is None else failed
            continue
        if killing and now - began > killing["after"]:
            kill(killing["to"])
            killing = None
        if (failed is not None and now - failed > run.get("patience", 15.0)) or now - began > run.get(
            "seconds", SECONDS
        ):
            kill(-1)
        time.sleep(0.01)
    return ended


if __name__ == "__main__":
    from tempfile import TemporaryDirectory

    import accidents

    accidents.warm_up()
    with TemporaryDirectory() as place:
        ends = [carry_out(run, Path(place), number) for number, run in enumerate(json.load(sys.stdin))]
    sys.stdout.write(json.dumps(ends) + "\n")
