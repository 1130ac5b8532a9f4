"""The sbatch script, to the letter, for five typical sites; and what is refused before anything is submitted."""

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from forgepress.errors import ConfigError
from forgepress.launch import slurm
from forgepress.launch.cli import main
from forgepress.launch.slurm_script import SlurmJob

GOLDEN = Path(__file__).with_name("golden")
JOB = SlurmJob(
    name="gpt",
    folder=Path("/scratch/gpt"),
    log=Path("/scratch/gpt/runs/gpt/slurm/%j.log"),
    train=("train", "/scratch/gpt/runs/gpt/slurm/config.yaml"),
    time="12:00:00",
)
SITES = {
    "gpu_types": replace(JOB, nodes=4, ranks_per_node=4, gpus_per_node="a100:4", cpus_per_rank=12),
    "account": replace(
        JOB,
        nodes=2,
        ranks_per_node=8,
        gpus_per_node="8",
        account="proj-17",
        partition="gpu",
        prepare=("module load cuda/12.8", "source ~/venv/bin/activate"),
        extra=("--qos=long", "--constraint=h100"),
        dependency="afterok:17",
    ),
    "container": replace(
        JOB,
        nodes=2,
        ranks_per_node=4,
        gpus_per_node="4",
        container="registry.example.org/lab/forgepress:1",
        mounts=("/data:/data",),
    ),
    "apptainer_exclusive": replace(
        JOB, ranks_per_node=8, gpus_per_node="8", container="/images/forgepress.sif", exclusive=True
    ),
    "array": replace(
        JOB,
        array="0-5%2",
        ranks_per_node=2,
        train=("train", "/scratch/gpt/config.yaml", "name=gpt-{array}", "seed={array}"),
        signal_seconds=300,
        most_restarts=3,
    ),
}


@pytest.mark.parametrize("site", sorted(SITES))
def test_the_script_for_a_site_is_the_one_that_was_read_and_kept(site: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("FORGEPRESS_SLURM_TEMPLATE", raising=False)
    golden = GOLDEN / f"{site}.sh"
    text = SITES[site].script()
    assert text == golden.read_text()
    assert subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True).returncode == 0


def test_a_template_of_the_sites_own_is_used_and_a_wrong_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    own = tmp_path / "own.sh"
    own.write_text("#!/bin/sh\n${directives}\nsrun ${srun_options} ${command}; echo $$?\n")
    monkeypatch.setenv("FORGEPRESS_SLURM_TEMPLATE", str(own))
    assert JOB.script().endswith("config.yaml; echo $?\n") and "#SBATCH --job-name=gpt" in JOB.script()
    with pytest.raises(ConfigError, match=r"'walltime'.*\$\{directives"):
        JOB.script("${walltime}")
    monkeypatch.setenv("FORGEPRESS_SLURM_TEMPLATE", str(tmp_path / "missing"))
    with pytest.raises(ConfigError, match="cannot be read"):
        JOB.script()


def _prepare(tmp_path: Path, *words: str, **job: object):
    config = Path(__file__).parents[2] / "launch" / "demo.yaml"
    given = [str(config), "phases=[{name: a, steps: 2}]", f"checkpoint.folder={tmp_path}", *words]
    return slurm.prepare(given, replace(JOB, **job))


def test_the_mesh_must_fill_the_nodes_and_array_tasks_must_not_share_a_folder(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"2 nodes × 8 ranks are 16 ranks, but the config's mesh has 2"):
        _prepare(tmp_path, nodes=2, ranks_per_node=8)
    with pytest.raises(ConfigError, match="give name="):
        _prepare(tmp_path, "seed={array}", ranks_per_node=2, array="0-3")
    with pytest.raises(ConfigError, match="give --array too"):
        _prepare(tmp_path, "seed={array}", ranks_per_node=2)
    config, job = _prepare(tmp_path, "seed={array}", "name=s-{array}", ranks_per_node=2, array="0-3")
    assert (
        job.train[2:] == ("seed={array}", "name=s-{array}")
        and job.log == tmp_path / "s-array/slurm/%A-%a.log"
    )
    config, job = _prepare(tmp_path, "name=one", ranks_per_node=2)
    assert (config.name, job.name, job.train) == (
        "one",
        "one",
        ("train", f"{tmp_path}/one/slurm/config.yaml"),
    )


def test_a_secret_in_the_config_is_refused_before_it_reaches_a_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    with pytest.raises(ConfigError, match=r"tracking\.wandb\.notes: holds a secret"):
        _prepare(tmp_path, "tracking.wandb={project: p, notes: 'key 0123456789abcdef'}", ranks_per_node=2)


def test_without_slurm_the_command_says_so_and_a_run_that_was_not_submitted_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("PATH", str(tmp_path))
    config = Path(__file__).parents[2] / "launch" / "demo.yaml"
    words = [
        str(config),
        "phases=[{name: a, steps: 2}]",
        f"checkpoint.folder={tmp_path}",
        "--ranks-per-node",
        "2",
    ]
    assert main(["slurm", *words]) == 2
    assert "sbatch is not here" in capsys.readouterr().err
    assert main(["slurm", *words, "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("#!/bin/bash\n#SBATCH --job-name=demo\n")
    assert main(["slurm", "status", str(tmp_path)]) == 2
    assert "was not submitted" in capsys.readouterr().err
    assert main(["slurm", *words, "--gpus-per-node", "many"]) == 2


def test_what_scontrol_and_sacct_say_becomes_one_state(monkeypatch: pytest.MonkeyPatch):
    answers = {"scontrol": "JobId=7 JobState=RUNNING Restarts=1 ExitCode=0:0 X=1\n"}

    def ask(program: str, *words: str) -> str:
        if program not in answers:
            raise ConfigError("forgotten")
        return answers[program]

    monkeypatch.setattr(slurm, "ask", ask)
    assert slurm.job_state("7") == ("RUNNING", "0:0")
    done, bad = "JobState=COMPLETED Y=1 ExitCode=0:0 Z\n", "JobState=FAILED Y=1 ExitCode=2:0 Z\n"
    answers["scontrol"] = done + bad + done
    assert slurm.job_state("7") == ("FAILED", "2:0") and slurm.wait_for("7") == 2
    answers["scontrol"] = done + done
    assert slurm.wait_for("7") == 0
    del answers["scontrol"]
    answers["sacct"] = "CANCELLED by 0|0:15\n"
    assert slurm.job_state("7") == ("CANCELLED", "0:15") and slurm.wait_for("7") == 1
    del answers["sacct"]
    assert slurm.job_state("7") == ("UNKNOWN", "")
