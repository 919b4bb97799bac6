"""A worker of a job queue, whose jobs outlive it.

    worker.py JOB WINDOW_END_MS [--crash]

The job is a task that holds nothing and stands until one of its attempts is completed, they are used up, or
its window closes. Each attempt is a task below it, held by the worker's process: when that dies, the
attempt ends, its credentials are refused, and the next worker tells the same wish with the same key and
goes on.
"""

import json
import os
import signal
import sys

import grpc
from spiffe import WorkloadApiClient

from work import Work, code_of, connect, wish


def main():
    job_id, window_end_ms = sys.argv[1], int(sys.argv[2])
    tasks = connect(os.environ["MAYFLY_ENDPOINT"])
    # Everything here comes from the queue and nothing from this process, so it is the same wish always.
    job = Work.begin(
        tasks,
        wish(
            "batch",
            {"job": True},
            intent=f"job {job_id}",
            attempts=3,
            deadline_ms=window_end_ms,
            key=f"queue/{job_id}",
        ),
    )
    try:
        attempt = Work.begin(tasks, wish("batch", {"process_pid": os.getpid()}, parent=job.id))
    except grpc.RpcError as error:
        print(json.dumps({"job": job.id, "attempt": None, "refused": code_of(error)}), flush=True)
        return
    with attempt:
        os.environ["SPIFFE_ENDPOINT_SOCKET"] = attempt.endpoint
        with WorkloadApiClient() as client:
            token = client.fetch_jwt_svid(audience={"storage"}).token
        print(json.dumps({"job": job.id, "attempt": attempt.id, "token": token}), flush=True)
        if "--crash" in sys.argv:
            os.kill(os.getpid(), signal.SIGKILL)
        # Here the job would be done.


if __name__ == "__main__":
    main()
