import pytest

from infra.errors import UsageError
from training.launching import announced

SRUN = {
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_NNODES": "4",
    "SLURM_JOB_NODELIST": "gpu[007-010]",
}


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("gpu[007-010,12]", "gpu007"),
        ("gpu[3,5],login", "gpu3"),
        ("rack1-n[01-04]-ib,rack2", "rack1-n01-ib"),
    ],
)
def test_the_first_node_of_slurms_shorthand(nodes: str, first: str) -> None:
    assert announced.first_host(nodes) == first


def test_srun_tells_a_task_its_rank_and_where_to_meet() -> None:
    environment = dict(SRUN)
    announced.adopt(environment)
    assert announced.is_worker(environment)
    assert announced.rank(environment) == 5
    told = {name: environment[name] for name in ("WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")}
    assert told == {"WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "gpu007"}


def test_all_tasks_of_a_step_meet_at_one_port_and_two_jobs_at_two() -> None:
    def port(**changed: str) -> str:
        environment = SRUN | changed
        announced.adopt(environment)
        return environment["MASTER_PORT"]

    assert port(SLURM_PROCID="0") == port(SLURM_PROCID="7")
    assert len({port(), port(SLURM_JOB_ID="4712"), port(SLURM_STEP_ID="1")}) == 3


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8"},
        SRUN | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
        {name: value for name, value in SRUN.items() if name != "SLURM_STEP_ID"} | {"ENVIRONMENT": "BATCH"},
    ],
    ids=["nobody", "salloc", "one task", "batch script"],
)
def test_a_process_that_srun_did_not_start_as_one_of_several_is_no_worker(
    environment: dict[str, str],
) -> None:
    environment = dict(environment)
    announced.adopt(environment)
    assert not announced.is_worker(environment)


def test_what_torchrun_said_stands_inside_a_slurm_job() -> None:
    environment = SRUN | {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "here"}
    announced.adopt(environment)
    assert environment["RANK"] == "1"
    assert environment["MASTER_ADDR"] == "here"


def test_tasks_that_cannot_know_where_to_meet_are_refused() -> None:
    environment = {name: value for name, value in SRUN.items() if name != "SLURM_JOB_NODELIST"}
    with pytest.raises(UsageError, match="set MASTER_ADDR"):
        announced.adopt(environment)


def test_who_ends_a_worker_where_another_one_has_refused() -> None:
    words = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "node007", "MASTER_PORT": "20000"}
    assert announced.looks_after_itself(words)
    assert not announced.looks_after_itself(words | {"TORCHELASTIC_RUN_ID": "none"})  # torchrun
    assert not announced.looks_after_itself(words | {"CROSS_RANK": "0"})  # deepspeed
    assert not announced.looks_after_itself(words | {"WORLD_SIZE": "1"})


def test_a_batch_script_that_says_where_its_tasks_are_to_meet_is_none_of_them() -> None:
    words = {"WORLD_SIZE": "2", "MASTER_ADDR": "node007", "MASTER_PORT": "20000"}
    assert not announced.is_worker(words)
    assert not announced.looks_after_itself(words)
