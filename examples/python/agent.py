"""An agent whose every tool call is a task of its own.

The decorator `tool` delegates a sub-task that may do what this one tool needs and nothing else, runs the
tool in a process that reaches the sub-task's socket, and ends the sub-task when the tool is back. What the
tool was given, and whatever somebody talks it into passing on, is refused everywhere from then on.
"""

import functools
import json
import os
import subprocess
import sys

from spiffe import WorkloadApiClient

from work import Work, connect, wish

TOOLS = {}


def tool(*, audiences, profile="tool"):
    """Makes a function a tool: called with the work that it is a part of, run as a task below it."""

    def decorate(function):
        TOOLS[function.__name__] = function

        @functools.wraps(function)
        def call(work, **arguments):
            request = wish(
                profile,
                {"socket": True},
                intent=f"tool {function.__name__}",
                audiences=audiences,
                tools=[function.__name__],
            )
            with work.delegate(request) as step:
                # A process of its own, because an identity is a process's and not a function's.
                done = subprocess.run(
                    [sys.executable, __file__, "--tool", function.__name__],
                    input=json.dumps(arguments),
                    env={**os.environ, "SPIFFE_ENDPOINT_SOCKET": step.endpoint},
                    stdout=subprocess.PIPE,
                    text=True,
                    check=True,
                    timeout=60,
                )
            return {"task": step.id, **json.loads(done.stdout)}

        return call

    return decorate


def token_for(audience):
    """What any SPIFFE client does; here py-spiffe, with the socket from the environment."""
    with WorkloadApiClient() as client:
        return client.fetch_jwt_svid(audience={audience}).token


@tool(audiences=["warehouse"])
def read_sales(month):
    token = token_for("warehouse")
    # Here it would call the warehouse. That it may call nobody else is not this program's to decide.
    try:
        token_for("mail")
        other = "granted"
    except Exception as error:  # py-spiffe wraps the refusal; its text has the code.
        other = "refused" if "audience_out_of_scope" in str(error) else f"failed: {error}"
    return {"month": month, "total": 42, "token": token, "mail": other}


@tool(audiences=["mail"])
def send_report(text):
    return {"sent": text, "token": token_for("mail")}


def main():
    tasks = connect(os.environ["MAYFLY_ENDPOINT"])
    request = wish(
        "agent",
        {"lease": True},
        intent="report the sales of May",
        audiences=["warehouse", "mail"],
        tools=["read_sales", "send_report"],
        lease=6.0,
    )
    with Work.begin(tasks, request) as work:
        sales = read_sales(work, month="May")
        report = send_report(work, text=f"sales of May: {sales['total']}")
    print(json.dumps({"task": work.id, "calls": [sales, report]}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--tool"]:
        print(json.dumps(TOOLS[sys.argv[2]](**json.loads(sys.stdin.read()))))
    else:
        main()
