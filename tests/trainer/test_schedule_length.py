"""The learning rate of a run that is resumed with another length, against values computed by hand."""

import json
import math

import pytest
import torch

from trainer.optimization.lr_curves import LRSchedulerConfig
from trainer.optimization.lr_scheduler import Schedule, depends_on_length, schedule_lines

BASES = [1.0, 0.1]  # two groups


def schedule(total, plan, steps_per_epoch=20):
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": base} for base in BASES]
    return Schedule(torch.optim.SGD(groups, lr=1.0), plan, total, steps_per_epoch)


def resumed(before, total, choice, plan=None, **changes):
    """A schedule of another length that takes up another's state, as a checkpoint's JSON keeps it."""
    plan = plan or before.plan
    plan = LRSchedulerConfig(**{**vars(plan), "new_length": choice, **changes})
    after = schedule(total, plan)
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    return after


def stepped(made, to):
    while made.step_count < to:
        made.step()
    return made


def rates(made, to):
    """{step: rates} from where it stands."""
    values = {made.step_count: made.get_last_lr()}
    while made.step_count < to:
        made.step()
        values[made.step_count] = made.get_last_lr()
    return values


def linear(position, length=100, warmup=10):
    return position / warmup if position < warmup else (length - position) / (length - warmup)


LINEAR = LRSchedulerConfig("linear", warmup_steps=10, learning_rate=1.0)


@pytest.mark.parametrize(("step", "total"), [(40, 160), (4, 200), (40, 70), (99, 300), (0, 50)])
def test_rebasing_spreads_the_rest_of_a_schedule_over_the_remaining_steps(step, total):
    """Longer, in the middle of the warm-up, shorter, at the last step, at the first."""
    before = stepped(schedule(100, LINEAR), step)
    values = rates(resumed(before, total, "rebase"), total)
    assert values[step] == pytest.approx(before.get_last_lr())  # no jump
    for at, both in values.items():
        rate = linear(step + (100 - step) * (at - step) / (total - step))
        assert both == pytest.approx([rate, 0.1 * rate])
    assert values[total] == pytest.approx([0, 0])


def test_a_share_of_warm_up_stays_the_share_it_was():
    plan = LRSchedulerConfig("linear", warmup_steps=0.1, learning_rate=1.0)
    after = resumed(stepped(schedule(100, plan), 40), 160, "rebase")
    assert after.warmup == 10 and after.get_last_lr()[0] == pytest.approx(linear(40))


def test_a_second_and_a_third_length():
    once = stepped(resumed(stepped(schedule(100, LINEAR), 40), 160, "rebase"), 100)
    again = resumed(once, 160, "rebase")  # the same command again: nothing changes
    assert again.state_dict() == once.state_dict()
    assert rates(again, 160) == rates(stepped(resumed(stepped(schedule(100, LINEAR), 40), 160, "rebase"), 100), 160)
    twice = resumed(once, 400, "rebase")
    position = 40 + 60 * 60 / 120  # 70 of 100
    for at, both in rates(twice, 400).items():
        assert both[0] == pytest.approx(linear(position + 30 * (at - 100) / 300))
    kept = resumed(stepped(twice, 200), 500, "keep", min_lr=0.25)
    assert kept.mapping.total == 400


@pytest.mark.parametrize("name", ["cosine", "CosineAnnealingLR"])
def test_a_kept_schedule_ends_at_its_original_step(name):
    plan = LRSchedulerConfig(name, min_lr=0.25, learning_rate=1.0)
    before = stepped(schedule(100, plan), 40)
    values = rates(resumed(before, 250, "keep"), 250)
    for at, (rate, _) in values.items():
        cosine = (1 + math.cos(math.pi * min(at, 100) / 100)) / 2
        wanted = 0.25 + 0.75 * cosine if name == "cosine" else max(0.25, cosine)  # torch's never goes below
        assert rate == pytest.approx(wanted)


def test_a_kept_schedule_survives_further_resumes_and_can_be_rebased_before_its_end():
    plan = LRSchedulerConfig("linear", min_lr=0.5, learning_rate=1.0)
    kept = stepped(resumed(stepped(schedule(100, plan), 40), 200, "keep"), 60)
    again = resumed(kept, 300, "keep")
    assert rates(again, 300)[299] == pytest.approx([0.5, 0.05])
    rebased = resumed(kept, 300, "rebase")
    assert rebased.get_last_lr()[0] == pytest.approx(0.5 + 0.5 * 0.4)
    assert rates(rebased, 300)[180][0] == pytest.approx(0.5 + 0.5 * 0.2)  # half of what was left
    with pytest.raises(ValueError, match="nothing is left"):
        resumed(stepped(kept, 150), 300, "rebase")


def test_a_learning_rate_of_zero_is_refused():
    before = stepped(schedule(100, LINEAR), 40)
    with pytest.raises(ValueError, match="ends at a learning rate of 0 at step 100.*: rebase .what"):
        resumed(before, 200, "keep")
    assert rates(resumed(before, 60, "keep"), 60)[60][0] == pytest.approx(linear(60))  # cut short, not stretched
    with pytest.raises(
        ValueError, match="`linear` ended at step 100, at a learning rate of 0; start a new run from its weights"
    ):
        resumed(stepped(before, 100), 200, "rebase")
    with pytest.raises(ValueError, match="resume_schedule: rebase .what is left of it after step 40"):
        resumed(stepped(schedule(100, LINEAR), 40), 200, None)


@pytest.mark.parametrize("min_lr", [None, 0.25])
@pytest.mark.parametrize("step", [40, 100])
@pytest.mark.parametrize("total", [60, 130])
def test_only_what_works_is_offered(min_lr, step, total):
    """Every choice that the refusal names is accepted, every other one is refused."""
    if step > total:
        pytest.skip("such a checkpoint is refused before its schedule is read")
    before = stepped(schedule(100, LRSchedulerConfig("linear", min_lr=min_lr, learning_rate=1.0)), step)
    with pytest.raises(ValueError) as refused:
        resumed(before, total, None)
    for choice in ("keep", "rebase"):
        if f"{choice} (" in str(refused.value):
            resumed(before, total, choice)
        else:
            with pytest.raises(ValueError):
                resumed(before, total, choice)
    assert ("new run" in str(refused.value)) == (min_lr is None and step == 100)


@pytest.mark.parametrize(
    "plan",
    [
        LRSchedulerConfig("StepLR", {"step_size": 30}, learning_rate=1.0),
        LRSchedulerConfig("constant", warmup_steps=10, learning_rate=1.0),
        LRSchedulerConfig("linear", decay_steps=90, learning_rate=1.0),
        LRSchedulerConfig("StepLR", {"step_size": 2}, interval="epoch", warmup_epochs=1, learning_rate=1.0),
    ],
)
def test_schedules_that_do_not_depend_on_the_length_continue_unchanged(plan):
    longer = rates(schedule(200, plan), 200)
    values = rates(resumed(stepped(schedule(100, plan), 40), 200, None), 200)
    assert values == {step: both for step, both in longer.items() if step >= 40}
    assert not depends_on_length(plan, 100, 200, 20)


def test_a_schedule_in_epochs_is_stretched_too():
    plan = LRSchedulerConfig("CosineAnnealingLR", interval="epoch", learning_rate=1.0)  # 5 epochs of 20 steps
    values = rates(resumed(stepped(schedule(100, plan), 40), 160, "rebase"), 160)
    for at, (rate, _) in values.items():
        epochs = int((40 + 60 * (at - 40) / 120 + 1e-9) // 20)
        assert rate == pytest.approx((1 + math.cos(math.pi * epochs / 5)) / 2, abs=1e-9)


def test_another_schedule_takes_over_at_the_same_step():
    before = stepped(schedule(100, LINEAR), 40)
    cosine = LRSchedulerConfig("cosine", learning_rate=1.0)
    with pytest.raises(ValueError, match="the checkpoint's schedule is `linear`"):
        resumed(before, 100, None, plan=cosine)
    after = resumed(before, 100, None, plan=cosine, takes_over=True)
    assert after.get_last_lr() == pytest.approx(stepped(schedule(100, cosine), 40).get_last_lr())
    longer = resumed(before, 200, None, plan=cosine, takes_over=True)  # made for the length of now
    assert longer.get_last_lr()[0] == pytest.approx((1 + math.cos(math.pi * 40 / 200)) / 2)


def test_a_plateau_keeps_its_reductions_when_its_options_change():
    plan = LRSchedulerConfig("ReduceLROnPlateau", {"patience": 0, "threshold": 0.0, "factor": 0.5}, learning_rate=1.0)
    before = schedule(100, plan)
    for value in (1.0, 2.0):
        before.observe(value)
    assert before.get_last_lr()[0] == 0.5
    after = resumed(before, 100, None, options={"patience": 0, "threshold": 0.0, "factor": 0.1})
    assert after.get_last_lr()[0] == 0.5
    after.observe(3.0)
    assert after.get_last_lr()[0] == pytest.approx(0.05)


def test_changed_options_count_from_the_same_step():
    plan = LRSchedulerConfig("StepLR", {"step_size": 10, "gamma": 0.1}, learning_rate=1.0)
    after = resumed(stepped(schedule(100, plan), 40), 100, None, options={"step_size": 20, "gamma": 0.5})
    assert after.get_last_lr() == pytest.approx([0.25, 0.025])  # two of the new steps lie behind it
    floored = resumed(stepped(schedule(100, LINEAR), 40), 100, None, min_lr=0.5)
    assert floored.get_last_lr() == pytest.approx([0.5 + 0.5 * linear(40), 0.05 + 0.05 * linear(40)])


def test_a_new_base_rate_survives_rebasing():
    after = resumed(stepped(schedule(100, LINEAR), 40), 160, "rebase")
    after.rebase([2.0, 0.1])
    again = resumed(stepped(after, 100), 160, "rebase")
    assert again.get_last_lr() == pytest.approx([2 * linear(70), 0.1 * linear(70)])


def test_the_lines_show_the_schedule_from_the_step_at_which_it_changed():
    after = resumed(stepped(schedule(100, LINEAR), 40), 160, "rebase")
    _, points = schedule_lines(after)
    assert points.strip() == "0.667 at 40, 0.5 at 70, 0.333 at 100, 0.167 at 130, 0.00556 at 159"
