"""Several processes at the same time."""

import socket
import subprocess
import time

from tiny_runs import ROOT


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def run_together(commands, environments, timeout=200):
    """Runs commands at the same time; all of them end, or are ended, in time."""
    processes = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for command, env in zip(commands, environments, strict=True)
    ]
    until = time.monotonic() + timeout
    try:
        outputs = [
            p.communicate(timeout=max(1, until - time.monotonic()))[0]
            for p in processes
        ]
    except subprocess.TimeoutExpired:
        return None, "took too long"
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [p.returncode for p in processes], "\n".join(outputs)
