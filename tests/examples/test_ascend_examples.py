"""The jobs of examples/ascend: they are read, and what they start are commands of ours. None has run on an NPU."""

import os
import shutil
import subprocess
from pathlib import Path

import mindspore as ms
import pytest
import yaml
from support import ROOT

FOLDER = ROOT / "examples" / "ascend"
MSRUN = (Path(ms.__file__).parent / "parallel" / "cluster" / "run.py").read_text(encoding="utf-8")
OPERATOR = {
    **{"MS_SCHED_HOST": "10.0.0.1", "MS_SCHED_PORT": "2222", "MS_WORKER_NUM": "16"},
    **{"MS_LOCAL_WORKER": "8", "MS_NODE_RANK": "1", "MS_ROLE": "MS_WORKER"},
}
MODELARTS = {
    **{"VC_WORKER_HOSTS": "a.svc,b.svc", "VC_TASK_INDEX": "1", "MA_NUM_HOSTS": "2", "MA_NUM_GPUS": "8"},
    "RANK_TABLE_FILE": "/user/config/jobstart_hccl.json",
}
# The options of `ma-cli ma-job submit` that the example uses, as Huawei Cloud's documentation lists them.
MA_CLI = {
    *("name", "image-url", "code-dir", "user-command", "train-instance-type", "train-instance-count", "log-url"),
    *("input", "output"),
}


@pytest.fixture
def started(tmp_path):
    """A function (shell command, environment) -> what a host started: msrun's options, and the program's arguments."""
    (tmp_path / "bin").mkdir()
    stub = tmp_path / "bin" / "msrun"
    stub.write_text('#!/bin/sh\n[ -z "$RANK_TABLE_FILE" ] || exit 3\nprintf "%s\\n" "$@"\n')
    stub.chmod(0o755)

    def started(command, environment=()):
        kept = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", **dict(environment)}
        done = subprocess.run(
            ["bash", "-c", command], env=kept, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
        )
        words = done.stdout.splitlines()
        if done.returncode or "python" not in words:
            return done.stderr, None
        options, program = words[: words.index("python")], words[words.index("python") :]
        assert [option for option in options[::2] if f'"{option}"' not in MSRUN] == []
        assert program[:4] == ["python", "-m", "mindrepvgg", "train"]
        return dict(zip(options[::2], options[1::2], strict=True)), program[4:]

    return started


def train(*options):
    return f"bash examples/ascend/train.sh {' '.join(map(str, options))}"


def read(name):
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


def command_of_the_pod(tmp_path):
    """What the pod runs, with folders of the test in the place of those that it mounts."""
    (text,) = read("acjob.yaml")["spec"]["replicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]["args"]
    environment, _, command = text.partition(" && exec ")
    assert environment.startswith("source ")
    return command.replace("/job/code", str(ROOT)).replace("/job", str(tmp_path))


@pytest.mark.parametrize("equals", [" ", "="])
def test_a_host_starts_a_run_and_goes_on_with_it(tmp_path, started, equals):
    folder = tmp_path / "a run"
    command = train("-c", "quickstart", f"--ckpt_save_dir{equals}'{folder}'")
    options, arguments = started(command)
    assert arguments[:2] == ["-c", "quickstart"]
    assert "--resume" not in arguments
    assert (options["--worker_num"], options["--local_worker_num"]) == ("8", "8")
    (folder / "repvgg_nano_best.ckpt").touch()
    assert "--resume" not in started(command)[1]
    (folder / "repvgg_nano_last.ckpt").touch()
    assert started(command)[1] == [*arguments, "--resume"]


def test_a_host_knows_its_place(tmp_path, started):
    folder = ["--ckpt_save_dir", tmp_path / "run"]
    for environment, address, port in ((OPERATOR, "10.0.0.1", "2222"), (MODELARTS, "a.svc", None)):
        options, _ = started(train(*folder), environment)
        assert (options["--worker_num"], options["--local_worker_num"]) == ("16", "8")
        assert (options["--master_addr"], options.get("--master_port")) == (address, port)
        assert options["--node_rank"] == "1"
        assert options["--log_dir"].endswith("host_1")
    options, _ = started(train(*folder), {"NPUS": "4"})
    assert (options["--worker_num"], options["--local_worker_num"]) == ("4", "4")
    assert "--master_addr" not in options


def test_a_run_without_a_folder_is_refused(started):
    said, arguments = started(train("-c", "quickstart"))
    assert arguments is None
    assert said.startswith("error: give --ckpt_save_dir FOLDER")


def test_the_ascend_job_is_one_of_two_hosts():
    job = read("acjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("mindxdl.gitee.com/v1", "AscendJob")
    kinds = job["spec"]["replicaSpecs"]
    assert list(kinds) == ["Scheduler", "Worker"]
    assert (
        sum(kind["replicas"] for kind in kinds.values()) == job["spec"]["runPolicy"]["schedulingPolicy"]["minAvailable"]
    )
    assert kinds["Scheduler"]["template"] == kinds["Worker"]["template"]
    pod = kinds["Worker"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["name"] == "ascend"
    assert container["resources"]["requests"] == container["resources"]["limits"] == {"huawei.com/Ascend910": 8}
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    (values,) = [
        expression["values"]
        for term in pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        for expression in term["labelSelector"]["matchExpressions"]
    ]
    assert values == [job["metadata"]["name"]]


def test_the_ascend_job_stops_where_it_trains(tmp_path, started):
    """A file `stop` in the run's folder ends the run; the pod has longer than its hook."""
    _, arguments = started(command_of_the_pod(tmp_path), OPERATOR)
    folder = arguments[arguments.index("--ckpt_save_dir") + 1].replace(str(tmp_path), "/job")
    pod = read("acjob.yaml")["spec"]["replicaSpecs"]["Worker"]["template"]["spec"]
    hook = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1]
    assert hook.startswith(f"touch {folder}/stop; sleep ")
    assert int(hook.split()[-1]) < pod["terminationGracePeriodSeconds"]


def test_the_model_arts_job_names_options_of_its_client_and_folders_of_ours():
    job = read("modelarts.yaml")
    assert set(job) == MA_CLI
    assert [entry["name"] for entry in (*job["input"], *job["output"])] == ["data_dir", "ckpt_save_dir"]


@pytest.mark.parametrize("name", ["acjob.yaml", "modelarts.yaml"])
def test_the_jobs_start_a_recipe_of_ours(name, tmp_path, started, call):
    if name == "acjob.yaml":
        command, environment = command_of_the_pod(tmp_path), OPERATOR
    else:
        folders = [f"--{key}={tmp_path / key}" for key in ("data_dir", "ckpt_save_dir")]
        command, environment = " ".join([read(name)["user-command"], *folders]), MODELARTS
    _, arguments = started(command, environment)
    status, out, err = call("train", *arguments, "--show_config")
    assert (status, err) == (0, "")
    assert "repvgg_a1" in out
    assert call("train", *arguments, "--no_option_of_ours", "1")[0] == 2


@pytest.mark.slow
def test_a_copied_folder_goes_on(tmp_path, call):
    """As ModelArts copies it: to another place, by the script; msrun is left out, one process trains."""
    small = ["-c", "quickstart", "--mode", "1", "--image_resize", "16", "--batch_size", "1000"]
    first, second = tmp_path / "first", tmp_path / "second"
    assert call("train", *small, "--epoch_size", "1", "--ckpt_save_dir", str(first))[0] == 0
    shutil.copytree(first, second)
    (tmp_path / "bin").mkdir()
    stub = tmp_path / "bin" / "msrun"
    stub.write_text('#!/bin/sh\nwhile [ "$1" != python ]; do shift; done\nexec "$@"\n')
    stub.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    command = train(*small, "--epoch_size", "2", "--ckpt_save_dir", second)
    done = subprocess.run(
        ["bash", "-c", command], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    epochs = [line for line in (second / "log.jsonl").read_text().splitlines() if '"val' in line]
    assert len(epochs) == 2
