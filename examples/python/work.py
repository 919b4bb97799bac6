"""A piece of work that this process answers for: begun, kept alive, ended. Eighty lines over the stubs."""

import threading
import uuid

import grpc
from mayfly.v1 import record_pb2, tasks_pb2
from mayfly.v1.tasks_pb2_grpc import TasksStub


def connect(endpoint):
    """The Tasks API of this machine's broker, for example unix:///run/mayfly/tasks.sock."""
    return TasksStub(grpc.insecure_channel(endpoint, options=[("grpc.default_authority", "localhost")]))


def code_of(error):
    """The stable code of a refusal: docs/denials.md has what each means."""
    return error.details().partition(":")[0]


def names(values):
    """None leaves a dimension open; an empty list permits nothing."""
    return None if values is None else record_pb2.Names(names=values)


def wish(profile, holder, *, intent="", audiences=None, tools=None, lease=0.0, key=None, **fields):
    """What a task is begun with. The key makes it one task however often it is told."""
    scope = record_pb2.Scope(audiences=names(audiences), tools=names(tools))
    budget = record_pb2.Budget(attempts=fields.pop("attempts", None))
    return tasks_pb2.BeginRequest(
        profile=profile,
        holder=tasks_pb2.HolderWish(**holder),
        declaration=tasks_pb2.Declaration(intent=intent, scope=scope, budget=budget),
        lease_ms=int(lease * 1000),
        idempotency_key=key or uuid.uuid4().hex,
        **fields,
    )


class Work:
    """Use it with `with`: it is renewed inside, and completed or failed at the end."""

    def __init__(self, tasks, begun, lease=0.0):
        self.tasks, self.id = tasks, begun.task
        self.spiffe_id, self.endpoint = begun.spiffe_id, f"unix://{begun.socket}"
        self._lease, self._over = lease, threading.Event()

    @classmethod
    def begin(cls, tasks, request):
        # Told again while nobody answers: with its key it is the same wish.
        return cls(tasks, tasks.Begin(request, wait_for_ready=True, timeout=30), request.lease_ms / 1000)

    def delegate(self, request):
        """A task below this one: strictly narrower, no longer, and ended with it."""
        asked = tasks_pb2.DelegateRequest(parent=self.id, child=request)
        return Work(self.tasks, self.tasks.Delegate(asked, timeout=30), request.lease_ms / 1000)

    def end(self, cause="completed", reason=""):
        self._over.set()
        return self.tasks.End(tasks_pb2.EndRequest(task=self.id, cause=cause, reason=reason), timeout=30)

    def __enter__(self):
        if self._lease:
            threading.Thread(target=self._keep, daemon=True).start()
        return self

    def __exit__(self, kind, error, _trace):
        if kind is None:
            self.end()
        else:
            self.end("failed", str(error)[:200])

    def _keep(self):
        while not self._over.wait(self._lease / 3):
            try:
                self.tasks.Heartbeat(tasks_pb2.HeartbeatRequest(task=self.id), timeout=self._lease / 3)
            except grpc.RpcError as error:
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    return  # It was ended by somebody else.
