"""Who is in the group: from the config, from the variables of launchers, or nobody."""

from __future__ import annotations

from typing import Any

import pytest

from vinfer.config import DistributedConfig
from vinfer.errors import ConfigError
from vinfer.hosts.membership import Membership, find_membership

LWS = {"LWS_LEADER_ADDRESS": "v-0.v.ns", "LWS_GROUP_SIZE": "4", "LWS_WORKER_INDEX": "2"}
SLURM = {"SLURM_STEP_NODELIST": "gpu[07-09],cpu1", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "1"}
TPU = {"TPU_WORKER_HOSTNAMES": "t0,t1", "TPU_WORKER_ID": "1"}
EXPLICIT = {"coordinator": "here", "num_processes": 2, "process_id": 0}


def find(environ: dict[str, str], **keys: Any) -> Membership | None:
    config = DistributedConfig.model_validate({"secret_file": "/secret", **keys})
    return find_membership(config, environ)


def member(leader: str, num_processes: int, process_id: int, port: int = 8482) -> Membership:
    return Membership(leader=leader, port=port, num_processes=num_processes, process_id=process_id)


@pytest.mark.parametrize(
    ("environ", "keys", "expected"),
    [
        ({}, {}, None),
        ({**LWS, **TPU}, {}, None),
        (LWS, {"detect": "lws"}, member("v-0.v.ns", 4, 2)),
        (SLURM, {"detect": "slurm"}, member("gpu07", 4, 1)),
        ({**SLURM, "SLURM_STEP_NODELIST": "n1"}, {"detect": "slurm"}, member("n1", 4, 1)),
        ({**SLURM, "SLURM_STEP_NODELIST": "a[3]-x,b"}, {"detect": "slurm"}, member("a3-x", 4, 1)),
        (TPU, {"detect": "tpu"}, member("t0", 2, 1)),
        ({}, {"detect": "auto"}, None),
        ({**LWS, **SLURM}, {"detect": "auto"}, member("v-0.v.ns", 4, 2)),
        ({**LWS, "LWS_GROUP_SIZE": "1", "LWS_WORKER_INDEX": "0"}, {"detect": "auto"}, None),
        ({**TPU, "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, {"detect": "auto"}, None),
        ({}, EXPLICIT, member("here", 2, 0)),
        ({}, {**EXPLICIT, "coordinator": "here:9"}, member("here", 2, 0, 9)),
        ({}, {**EXPLICIT, "coordinator": "[::1]:9"}, member("::1", 2, 0, 9)),
        ({}, {**EXPLICIT, "num_processes": 1}, None),
        # The config wins.
        (LWS, {"detect": "lws", "coordinator": "other:1", "process_id": 3}, member("other", 4, 3, 1)),
    ],
)
def test_the_place_of_a_process(
    environ: dict[str, str], keys: dict[str, Any], expected: Membership | None
) -> None:
    assert find(environ, **keys) == expected


@pytest.mark.parametrize(
    ("environ", "keys", "problem"),
    [
        ({"LWS_GROUP_SIZE": "2"}, {"detect": "lws"}, "LWS_LEADER_ADDRESS, LWS_WORKER_INDEX is not set"),
        ({**LWS, "LWS_GROUP_SIZE": "two"}, {"detect": "lws"}, "LWS_GROUP_SIZE is 'two'"),
        ({**TPU, "TPU_WORKER_HOSTNAMES": " , "}, {"detect": "tpu"}, "names no host"),
        ({}, {"coordinator": "here"}, "num_processes is not set"),
        ({}, {"num_processes": 2, "process_id": 0}, "coordinator is not set"),
        ({}, {**EXPLICIT, "process_id": 2}, "the last one is 1"),
        ({}, {**EXPLICIT, "coordinator": "a:b:c"}, "write HOST or HOST:PORT"),
        ({}, {**EXPLICIT, "coordinator": "a:99999"}, "write HOST or HOST:PORT"),
        ({}, {**EXPLICIT, "secret_file": None}, "secret_file is not set"),
    ],
)
def test_what_is_missing_or_wrong_is_named(
    environ: dict[str, str], keys: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        find(environ, **keys)


def test_a_loopback_leader_needs_no_other_machine() -> None:
    assert member("127.0.0.1", 2, 0).is_on_one_machine
    assert not member("v-0.v.ns", 2, 0).is_on_one_machine
