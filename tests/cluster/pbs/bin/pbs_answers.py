"""Stand-in for PBS: what its qstat says of jobs, in the format of OpenPBS 23.06."""

import getopt
import json
import time
from pathlib import Path

import pbs_standin as server


def qstat(arguments: list[str]) -> int:
    options, ids = getopt.getopt(arguments, "xfF:wB")
    given = dict(options)
    if server.fails_now("qstat_fails"):
        return server.refuse(server.UNREACHABLE.format("qstat"), 111)
    history = server.settings()["history"]
    if "-B" in given:
        print(f"Server: {server.SERVER}\n    server_state = Active")
        print("    job_history_enable = True\n" if history else "")
        return 0
    shown, code = {}, 0
    for id in ids:
        found = server.find(id)
        if "-x" in given and not history:
            # Also of a job that runs, and the exit code is 0.
            server.refuse(f"qstat: PBS is not configured to maintain job history {id}", 0)
        elif found is None or (found["state"] == "F" and not history):
            code = server.refuse(f"qstat: Unknown Job Id {id}", server.UNKNOWN_JOB)
        elif found["state"] == "F" and "-x" not in given:
            code = server.refuse(
                f"qstat: {id} Job has finished, use -x or -H to obtain historical job information",
                server.HISTORY_JOB,
            )
        else:
            shown[f"{found['number']}.{server.SERVER}"] = _fields(found)
    if given.get("-F") == "json":
        print(_json(dict(list(shown.items())[:1])))  # of several jobs only the first
    else:
        for id, fields in shown.items():
            print(f"Job Id: {id}")
            for name, value in _flat(fields):
                print(_wrapped(f"    {name} = {value}"))
            print()
    return code


def _fields(found: dict) -> dict:
    fields = {
        "Job_Name": found["name"],
        "Job_Owner": "user@login",
        "job_state": found["state"],
        "queue": found["options"].get("-q", "workq"),
        "server": server.SERVER,
        "ctime": _text(found["ctime"]),
        "Error_Path": "login:/dev/null",
        "Join_Path": found["options"].get("-j", "n"),
        "mtime": _text(found["mtime"]),
        "Priority": 0,
        "Rerunable": "True",
        "Resource_List": {
            "nodect": found["chunks"],
            "place": found["resources"].get("place", "pack"),
            "select": found["resources"].get("select", "1:ncpus=1"),
        },
        "substate": found["substate"],
        # Written as it is, quotes included: not always JSON.
        "Variable_List": {"PBS_O_HOME": str(Path.home()), "PBS_O_LANG": "C"} | found["variables"],
        "comment": "Not Running: Insufficient amount of resource: ncpus",
        "Submit_arguments": " ".join(found["arguments"]).replace("\\", "/").replace('"', "'"),
        "project": "_pbs_project_default",
    }
    if mem := found["chunk"].get("mem"):
        fields["Resource_List"]["mem"] = f"{int(mem[:-2]) * found['chunks']}{mem[-2:]}"
    if walltime := server.walltime_s(found):
        whole = round(walltime)
        text = f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}"
        fields["Resource_List"]["walltime"] = text
    if "stime" in found:
        fields["stime"] = _text(found["stime"])
        fields["comment"] = f"Job run at {_text(found['stime'])[:16]} on (node)"
        fields["exec_host"] = found.get("exec_host", "")
        fields["resources_used"] = {"mem": found["mem"], "ncpus": 1, "walltime": "00:00:01"}
    if "obittime" in found:
        fields["obittime"] = _text(found["obittime"])
        fields["comment"] += " and failed" if found["Exit_status"] else " and finished"
    if "Exit_status" in found:
        fields["Exit_status"] = found["Exit_status"]
    return fields


def _json(shown: dict) -> str:
    answer = {
        "timestamp": int(time.time()),
        "pbs_version": "23.06.06",
        "pbs_server": server.SERVER,
    } | ({"Jobs": shown} if shown else {})
    text = json.dumps(answer, indent=4)
    for fields in shown.values():
        for value in fields["Variable_List"].values():
            text = text.replace(json.dumps(value), f'"{value}"')
    return text


def _flat(fields: dict):
    for name, value in fields.items():
        if name == "Variable_List":
            yield name, ",".join(f"{k}={v}" for k, v in value.items())
        elif isinstance(value, dict):
            yield from ((f"{name}.{key}", inner) for key, inner in value.items())
        else:
            yield name, value


def _wrapped(line: str) -> str:
    """Long lines go on after a tab."""
    return "\n\t".join(line[i : i + 78] for i in range(0, len(line), 78))


def _text(moment: float) -> str:
    return time.strftime("%a %b %d %H:%M:%S %Y", time.localtime(moment))
