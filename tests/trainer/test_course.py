"""A learning rate's course in a run that goes on with another length: by hand."""

import json
import math

import pytest
import torch

from trainer.optimization.lr_scheduler import Schedule, depends_on_length, schedule_lines
from trainer.optimization.lr_scheduler_config import LRSchedulerConfig

BASES = [1.0, 0.1]  # two groups


def schedule(total, plan, steps_per_epoch=20):
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": base} for base in BASES]
    return Schedule(torch.optim.SGD(groups, lr=1.0), plan, total, steps_per_epoch)


def gone_on(before, total, choice, plan=None, **changes):
    """A schedule of another length that takes up another's state, as a checkpoint's JSON keeps it."""
    plan = plan or before.plan
    plan = LRSchedulerConfig(**{**vars(plan), "new_length": choice, **changes})
    after = schedule(total, plan)
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    return after


def stepped(made, to):
    while made.taken < to:
        made.step()
    return made


def rates(made, to):
    """{step: rates} from where it stands."""
    found = {made.taken: made.get_last_lr()}
    while made.taken < to:
        made.step()
        found[made.taken] = made.get_last_lr()
    return found


def linear(position, length=100, warmup=10):
    return position / warmup if position < warmup else (length - position) / (length - warmup)


LINEAR = LRSchedulerConfig("linear", warmup_steps=10, learning_rate=1.0)


@pytest.mark.parametrize(("step", "total"), [(40, 160), (4, 200), (40, 70), (99, 300), (0, 50)])
def test_what_is_left_of_a_course_is_spread_over_the_steps_that_are_left(step, total):
    """Longer, in the middle of the warm-up, shorter, at the last step, at the first."""
    before = stepped(schedule(100, LINEAR), step)
    found = rates(gone_on(before, total, "rebase"), total)
    assert found[step] == pytest.approx(before.get_last_lr())  # no jump
    for at, both in found.items():
        rate = linear(step + (100 - step) * (at - step) / (total - step))
        assert both == pytest.approx([rate, 0.1 * rate])
    assert found[total] == pytest.approx([0, 0])


def test_a_share_of_warm_up_stays_the_share_it_was():
    plan = LRSchedulerConfig("linear", warmup_steps=0.1, learning_rate=1.0)
    after = gone_on(stepped(schedule(100, plan), 40), 160, "rebase")
    assert after.warmup == 10 and after.get_last_lr()[0] == pytest.approx(linear(40))


def test_a_second_and_a_third_length():
    once = stepped(gone_on(stepped(schedule(100, LINEAR), 40), 160, "rebase"), 100)
    resumed = gone_on(once, 160, "rebase")  # the same command again: nothing changes
    assert resumed.state_dict() == once.state_dict()
    assert rates(resumed, 160) == rates(stepped(gone_on(stepped(schedule(100, LINEAR), 40), 160, "rebase"), 100), 160)
    twice = gone_on(once, 400, "rebase")
    position = 40 + 60 * 60 / 120  # 70 of 100
    for at, both in rates(twice, 400).items():
        assert both[0] == pytest.approx(linear(position + 30 * (at - 100) / 300))
    kept = gone_on(stepped(twice, 200), 500, "keep", min_lr=0.25)
    assert kept.course.total == 400


@pytest.mark.parametrize("name", ["cosine", "CosineAnnealingLR"])
def test_a_course_that_is_kept_ends_where_it_was_to_end(name):
    plan = LRSchedulerConfig(name, min_lr=0.25, learning_rate=1.0)
    before = stepped(schedule(100, plan), 40)
    found = rates(gone_on(before, 250, "keep"), 250)
    for at, (rate, _) in found.items():
        cosine = (1 + math.cos(math.pi * min(at, 100) / 100)) / 2
        wanted = 0.25 + 0.75 * cosine if name == "cosine" else max(0.25, cosine)  # torch's never goes below
        assert rate == pytest.approx(wanted)


def test_a_course_that_is_kept_survives_further_resumes_and_can_be_rebased_before_its_end():
    plan = LRSchedulerConfig("linear", min_lr=0.5, learning_rate=1.0)
    kept = stepped(gone_on(stepped(schedule(100, plan), 40), 200, "keep"), 60)
    again = gone_on(kept, 300, "keep")
    assert rates(again, 300)[299] == pytest.approx([0.5, 0.05])
    rebased = gone_on(kept, 300, "rebase")
    assert rebased.get_last_lr()[0] == pytest.approx(0.5 + 0.5 * 0.4)
    assert rates(rebased, 300)[180][0] == pytest.approx(0.5 + 0.5 * 0.2)  # half of what was left
    with pytest.raises(ValueError, match="nothing is left"):
        gone_on(stepped(kept, 150), 300, "rebase")


def test_what_would_teach_nothing_is_refused():
    before = stepped(schedule(100, LINEAR), 40)
    with pytest.raises(ValueError, match="ends at a learning rate of 0 at step 100; rebase it"):
        gone_on(before, 200, "keep")
    assert rates(gone_on(before, 60, "keep"), 60)[60][0] == pytest.approx(linear(60))  # cut short, not stretched
    with pytest.raises(ValueError, match="nothing is left of schedule `linear` to rebase: it ended at step 100"):
        gone_on(stepped(before, 100), 200, "rebase")
    with pytest.raises(ValueError, match="resume_schedule: keep .it ends at step 100"):
        gone_on(stepped(schedule(100, LINEAR), 40), 200, None)


@pytest.mark.parametrize(
    "plan",
    [
        LRSchedulerConfig("StepLR", {"step_size": 30}, learning_rate=1.0),
        LRSchedulerConfig("constant", warmup_steps=10, learning_rate=1.0),
        LRSchedulerConfig("linear", decay_steps=90, learning_rate=1.0),
        LRSchedulerConfig("StepLR", {"step_size": 2}, interval="epoch", warmup_epochs=1, learning_rate=1.0),
    ],
)
def test_schedules_that_do_not_ask_for_the_length_go_on_as_ever(plan):
    longer = rates(schedule(200, plan), 200)
    found = rates(gone_on(stepped(schedule(100, plan), 40), 200, None), 200)
    assert found == {step: both for step, both in longer.items() if step >= 40}
    assert not depends_on_length(plan, 100, 200, 20)


def test_a_schedule_in_epochs_is_stretched_too():
    plan = LRSchedulerConfig("CosineAnnealingLR", interval="epoch", learning_rate=1.0)  # 5 epochs of 20 steps
    found = rates(gone_on(stepped(schedule(100, plan), 40), 160, "rebase"), 160)
    for at, (rate, _) in found.items():
        epochs = int((40 + 60 * (at - 40) / 120 + 1e-9) // 20)
        assert rate == pytest.approx((1 + math.cos(math.pi * epochs / 5)) / 2, abs=1e-9)


def test_another_schedule_takes_over_at_the_same_step():
    before = stepped(schedule(100, LINEAR), 40)
    cosine = LRSchedulerConfig("cosine", learning_rate=1.0)
    with pytest.raises(ValueError, match="the checkpoint's schedule is `linear`"):
        gone_on(before, 100, None, plan=cosine)
    after = gone_on(before, 100, None, plan=cosine, takes_over=True)
    assert after.get_last_lr() == pytest.approx(stepped(schedule(100, cosine), 40).get_last_lr())
    longer = gone_on(before, 200, None, plan=cosine, takes_over=True)  # made for the length of now
    assert longer.get_last_lr()[0] == pytest.approx((1 + math.cos(math.pi * 40 / 200)) / 2)


def test_a_plateau_keeps_its_reductions_when_its_options_change():
    plan = LRSchedulerConfig("ReduceLROnPlateau", {"patience": 0, "threshold": 0.0, "factor": 0.5}, learning_rate=1.0)
    before = schedule(100, plan)
    for value in (1.0, 2.0):
        before.observe(value)
    assert before.get_last_lr()[0] == 0.5
    after = gone_on(before, 100, None, options={"patience": 0, "threshold": 0.0, "factor": 0.1})
    assert after.get_last_lr()[0] == 0.5
    after.observe(3.0)
    assert after.get_last_lr()[0] == pytest.approx(0.05)


def test_changed_options_count_from_the_same_step():
    plan = LRSchedulerConfig("StepLR", {"step_size": 10, "gamma": 0.1}, learning_rate=1.0)
    after = gone_on(stepped(schedule(100, plan), 40), 100, None, options={"step_size": 20, "gamma": 0.5})
    assert after.get_last_lr() == pytest.approx([0.25, 0.025])  # two of the new steps lie behind it
    floored = gone_on(stepped(schedule(100, LINEAR), 40), 100, None, min_lr=0.5)
    assert floored.get_last_lr() == pytest.approx([0.5 + 0.5 * linear(40), 0.05 + 0.05 * linear(40)])


COURSE = {"length": 9, "total": 9, "start": 0, "position": 0, "held": False}


@pytest.mark.parametrize(
    "course",
    [
        *([], {"length": 9}, {**COURSE, "more": 1}, {**COURSE, "start": 9}),
        *({**COURSE, "length": 0}, {**COURSE, "length": -9}, {**COURSE, "position": "4"}, {**COURSE, "total": None}),
    ],
)
def test_a_damaged_course_is_one_line(course):
    state = {**stepped(schedule(100, LINEAR), 40).state_dict(), "course": course}
    with pytest.raises(ValueError, match="course is damaged"):
        schedule(100, LINEAR).load_state_dict(state)


def test_a_new_base_rate_stays_over_a_rebased_course():
    after = gone_on(stepped(schedule(100, LINEAR), 40), 160, "rebase")
    after.rebase([2.0, 0.1])
    resumed = gone_on(stepped(after, 100), 160, "rebase")
    assert resumed.get_last_lr() == pytest.approx([2 * linear(70), 0.1 * linear(70)])


def test_the_lines_show_the_course_from_where_it_was_changed():
    after = gone_on(stepped(schedule(100, LINEAR), 40), 160, "rebase")
    _, points = schedule_lines(after)
    assert points.strip() == "0.667 at 40, 0.5 at 70, 0.333 at 100, 0.167 at 130, 0.00556 at 159"
