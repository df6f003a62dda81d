"""`scripts/slurm/train.sbatch` under a real Slurm: what reaches train.py, what is queued again, what is the same."""

import json
import sys
from pathlib import Path

import pytest
from forked_runs import server
from several_processes import launched, on_cpu
from small_runs import SmallRuns

from trainer.run_differences import differences, last_step

pytestmark = pytest.mark.slow
HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
NASTY = ["--set", "a=b c", "quote='\"", "line=1\n2", "", "$HOME `id` \\", "*", "-x", "é", "--"]


class Jobs:
    """Jobs of the stand-in: how often and with which words each was started."""

    def __init__(self, slurm, folder):
        self.slurm, self.folder = slurm, folder

    def submit(self, *words, what="train", **more):
        names = {"PYTHON": HERE / "stand_in.py", "INTERPRETER": sys.executable, "STAND_IN": what}
        return self.slurm.submit(*words, cwd=self.folder, **{**names, "STARTS": self.folder / "starts", **more})

    def starts(self):
        file = self.folder / "starts"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def started(self, count=1):
        self.slurm.wait_until(lambda: len(self.starts()) == count, f"start {count}", 60)

    def log(self, job):
        return (self.folder / f"log-{job}").read_text()


@pytest.fixture
def jobs(slurm, tmp_path):
    return Jobs(slurm, tmp_path)


def outcome(record):
    return record["JobState"], record["ExitCode"], int(record["Restarts"])


def test_arguments_arrive_as_they_were(slurm, jobs):
    assert outcome(slurm.over(jobs.submit(*NASTY, what="exit 0"))) == ("COMPLETED", "0:0", 0)
    assert jobs.starts() == [{"words": [*NASTY, "--resume_from_checkpoint", "auto"], "restarts": 0}]


def test_what_the_training_file_resumes_is_not_overruled(slurm, tmp_path):
    (tmp_path / "resumes.yaml").write_text("resume_from_checkpoint: newest\n")
    job = slurm.submit("--training_config", "resumes.yaml", "--output_dir", "out", cwd=tmp_path)
    assert slurm.over(job)["ExitCode"] == "2:0"
    assert "has no complete checkpoint" in (tmp_path / f"log-{job}").read_text()


@pytest.mark.parametrize("code", [1, 2])
def test_what_failed_is_not_queued_again(slurm, jobs, code):
    assert outcome(slurm.over(jobs.submit(what=f"exit {code}"))) == ("FAILED", f"{code}:0", 0)
    assert len(jobs.starts()) == 1


@pytest.mark.parametrize(
    ("signal", "named", "then"),
    [("USR1", "out/checkpoint-4", "auto:out/checkpoint-4"), ("TERM", "false", "auto")],
)
def test_a_job_told_to_end_is_queued_again(slurm, jobs, signal, named, then):
    """Then it goes on from its own newest checkpoint; from what its line names only where it has none."""
    job = jobs.submit("--resume_from_checkpoint", named)
    jobs.started()
    slurm.ask("scancel", f"--signal={signal}", "--batch", job)
    assert outcome(slurm.over(job)) == ("COMPLETED", "0:0", 1)
    first, second = (start["words"] for start in jobs.starts())
    assert first == ["--resume_from_checkpoint", named]
    assert second == [*first, "--resume_from_checkpoint", then]
    assert f"preempted; job {job} is queued again" in jobs.log(job)


@pytest.mark.parametrize(("options", "variables"), [([], {"KEEL_MAX_REQUEUES": 0}), (["--no-requeue"], {})])
def test_a_job_that_may_not_be_queued_again_says_so(slurm, jobs, options, variables):
    job = jobs.submit(options=options, **variables)
    jobs.started()
    slurm.ask("scancel", "--signal=USR1", "--batch", job)
    assert outcome(slurm.over(job)) == ("FAILED", "75:0", 0)
    assert "submit the same line to resume" in jobs.log(job)


def test_what_slurm_ends_itself_is_left_to_it(slurm, jobs):
    cancelled, requeued = jobs.submit(), jobs.submit()
    jobs.started(2)
    slurm.ask("scancel", cancelled)
    slurm.ask("scontrol", "requeue", requeued)
    assert slurm.over(cancelled)["JobState"] == "CANCELLED"
    assert outcome(slurm.over(requeued)) == ("COMPLETED", "0:0", 1)
    assert len(jobs.starts()) == 3
    assert "queued again" not in jobs.log(cancelled) + jobs.log(requeued)


def test_a_job_of_several_nodes_has_a_launcher_on_each(slurm, jobs):
    job = jobs.submit("a b", options=["--nodes=2", "--gpus-per-node=2"])
    jobs.started(4)
    slurm.ask("scancel", "--signal=USR1", "--batch", job)
    assert outcome(slurm.over(job)) == ("COMPLETED", "0:0", 1)
    starts = [start["words"] for start in jobs.starts()]
    assert starts.count(["a b", "--resume_from_checkpoint", "auto"]) == 4  # a process on each node, twice
    size = ["--num_machines", "2", "--num_processes", "4"]
    meeting = ["--main_process_ip", "keel1", "--main_process_port", str(10000 + int(job) % 20000)]
    common = ["--config_file", str(ROOT / "scripts/accelerate/ddp.yaml"), *size, *meeting]
    for rank in "01":
        assert starts.count(["--machine_rank", rank, *common]) == 2


def test_a_launcher_that_fails_without_a_preemption_is_not_started_again(slurm, jobs):
    job = jobs.submit(what="exit 1", KEEL_PROCESSES_PER_NODE=2, KEEL_ACCELERATE_CONFIG="scripts/accelerate/fsdp2.yaml")
    assert outcome(slurm.over(job)) == ("FAILED", "1:0", 0)
    assert jobs.starts()[0]["words"][2:4] == ["--config_file", str(ROOT / "scripts/accelerate/fsdp2.yaml")]


def test_the_tasks_of_an_array_have_their_own_lines_folders_and_requeues(slurm, jobs):
    (jobs.folder / "sweep.txt").write_text("# what differs\n--seed 1 --set 'note=a b'\n--seed 2 --output_dir two\n")
    array = jobs.submit("--output_dir", "out", options=["--array=0-1"], KEEL_SWEEP="sweep.txt")
    jobs.started(2)
    slurm.ask("scancel", "--signal=USR1", "--batch", f"{array}_1")
    slurm.wait_until(lambda: slurm.record(f"{array}_1")["Restarts"] == "1", "task 1 is queued again")
    assert slurm.record(f"{array}_0")["JobState"] == "RUNNING"  # the other one goes on
    assert outcome(slurm.over(f"{array}_1")) == ("COMPLETED", "0:0", 1)
    slurm.ask("scancel", f"{array}_0")
    slurm.over(f"{array}_0")
    resume = ["--resume_from_checkpoint", "auto"]
    first = ["--output_dir", "out", "--seed", "1", "--set", "note=a b", "--output_dir", "out/0", *resume]
    second = ["--output_dir", "out", "--seed", "2", "--output_dir", "two", *resume]
    assert sorted((start["words"], start["restarts"]) for start in jobs.starts()) == [
        (first, 0),
        (second, 0),
        (second, 1),
    ]


@pytest.mark.parametrize(
    ("options", "variables", "says"),
    [
        (["--array=0-1"], {}, "task 0 has no --output_dir"),
        ([], {"KEEL_SWEEP": "sweep.txt"}, "the job is no array"),
        ([], {"KEEL_ROOT": "/nowhere"}, "set KEEL_ROOT to it"),
        ([], {"PYTHON": "/nowhere/python"}, "there is no /nowhere/python"),
        ([], {"KEEL_PROCESSES_PER_NODE": 2, "KEEL_ACCELERATE_CONFIG": "x.yaml"}, "no KEEL_ACCELERATE_CONFIG=x.yaml"),
    ],
)
def test_a_job_that_cannot_train_says_why_and_ends_with_2(slurm, jobs, options, variables, says):
    job = jobs.submit(options=options, **variables)
    name = f"{job}_0" if options else job
    assert slurm.over(name)["ExitCode"] == "2:0"
    assert len(log := jobs.log(name).splitlines()) == 1 and says in log[0]
    assert not jobs.starts()


def test_a_copy_of_the_script_needs_to_know_the_repository(slurm, jobs):
    copy = jobs.folder / "copy.sbatch"
    copy.write_text((ROOT / "scripts/slurm/train.sbatch").read_text())
    job = jobs.submit("1", what="exit 0", script=copy)
    assert slurm.over(job)["ExitCode"] == "2:0"
    assert "set KEEL_ROOT to it" in jobs.log(job)
    assert slurm.over(jobs.submit("2", what="exit 0", script=copy, KEEL_ROOT=ROOT))["ExitCode"] == "0:0"
    assert [start["words"][0] for start in jobs.starts()] == ["2"]


class Runs:
    """Trainings of a perceptron as jobs; the steps take a while where they shall be interrupted."""

    def __init__(self, slurm, folder):
        self.slurm, self.folder, self.small = slurm, folder, SmallRuns(folder)

    def words(self, out):
        text = "max_steps: 24\nsave_strategy: steps\nsave_steps: 10\neval_steps: 8\ncallbacks: [cluster.paced.Paced]"
        return self.small.words(text, out)

    def submit(self, out, **more):
        where = {"PYTHONPATH": HERE.parent, "KEEL_HOME": self.folder / "home", "ACCELERATE_USE_CPU": "true"}
        return self.slurm.submit(*self.words(out), cwd=self.folder, SECONDS_A_STEP=1.0, **where, **more)

    def whole(self, processes=1):
        """The uninterrupted run, without Slurm."""
        words = self.words("whole")
        if processes > 1:
            done = launched("ddp.yaml", words, SECONDS_A_STEP=0)
        else:
            done = server()(["train.py", *words], environment=on_cpu(SECONDS_A_STEP=0))
        assert done.returncode == 0, done.stderr

    def reached(self, out, step):
        self.slurm.wait_until(lambda: last_step(self.folder / out) >= step, f"{out} is at step {step}")

    def finished(self, job):
        """Waits for it; what it logged."""
        record, log = self.slurm.over(job), (self.folder / f"log-{job}").read_text()
        assert outcome(record)[:2] == ("COMPLETED", "0:0"), log
        return log

    def same(self, *names):
        """No difference between the first and each other run, bit for bit."""
        weights = {(self.folder / name / "model.safetensors").read_bytes() for name in names}
        assert len(weights) == 1
        for name in names[1:]:
            assert not differences(self.folder / names[0], self.folder / name)


@pytest.fixture
def runs(slurm, tmp_path):
    return Runs(slurm, tmp_path)


def test_a_run_that_is_requeued_or_near_its_time_limit_ends_as_if_nothing_had_happened(slurm, runs):
    requeued, signalled = runs.submit("requeued"), runs.submit("signalled")
    runs.reached("requeued", 4)
    slurm.ask("scontrol", "requeue", requeued)  # SIGTERM to all of the job's processes
    runs.reached("signalled", 4)
    slurm.ask("scancel", "--signal=USR1", "--batch", signalled)  # as --signal=B:USR1@120 has it
    runs.whole()
    for job in (requeued, signalled):
        said = runs.finished(job)
        assert said.count("preempted by SIG") == 1 and said.count("resuming from") == 1
        assert slurm.record(job)["Restarts"] == "1"
    runs.same("whole", "requeued", "signalled")


def test_a_run_on_two_nodes_makes_way_for_an_urgent_job_and_comes_back(slurm, runs):
    """Slurm sends SIGTERM to the processes, not to the script, and grants a grace time; a job that ends within it on
    its own account is over."""
    here = {"MASTER_ADDR": "127.0.0.1"}  # the nodes' names are on paper only
    parts = runs.submit("parts", options=["--nodes=2"], **here)
    runs.reached("parts", 4)
    room = ["--partition=urgent", "--nodes=1", "--nodelist=keel2", "--ntasks=2", "--output=urgent"]
    urgent = slurm.ask("sbatch", "--parsable", *room, "--wrap=true", cwd=runs.folder)
    assert outcome(slurm.over(urgent)) == ("COMPLETED", "0:0", 0)
    said = runs.finished(parts)
    assert "preempted by " in said and f"job {parts} is queued again" in said, said
    runs.whole(processes=2)
    runs.same("whole", "parts")
    state = json.loads((runs.folder / "parts/checkpoint-24/manifest.json").read_text())
    assert state["world_size"] == 2
