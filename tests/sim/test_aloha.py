"""The environment against gym-aloha's own tasks, and what may not be imported or loaded."""

import numpy as np
import pytest
from fresh_interpreter import python
from simulated_policies import HOME

from sim.aloha import Config, make, simulator
from sim.aloha.instructions import ALONE, PHRASINGS, VARIANTS


@pytest.mark.slow
def test_importing_the_configuration_loads_nothing_heavy():
    loaded = python(
        "import sys, sim.aloha, sim.aloha.expert, sim.record, sim.rollout, sim.film; print(sorted(set(sys.modules) & "
        "{'mujoco', 'dm_control', 'gym_aloha', 'gymnasium', 'h5py', 'torch', 'PIL', 'imageio_ffmpeg', 'OpenGL'}))"
    )
    assert loaded == "[]"
    assert python("import sys, sim.aloha, sim.metaworld, sim.contract; print('numpy' in sys.modules)") == "False"


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["egl", "nonsense"])
def test_state_needs_no_opengl(backend):
    """Steps with every OpenGL binding blocked, whatever MUJOCO_GL says, and leaves the variable alone."""
    printed = python(
        "import sys, os\n"
        "for name in ('OpenGL', 'glfw', 'mujoco.egl', 'mujoco.osmesa', 'mujoco.glfw'): sys.modules[name] = None\n"
        "import numpy as np\n"
        "from sim.aloha import Config, make\n"
        "environment = make(Config(task='transfer_cube'))\n"
        "environment.reset(0); environment.step(np.zeros(14))\n"
        "print(environment.steps, os.environ['MUJOCO_GL'])",
        MUJOCO_GL=backend,
    )
    assert printed == f"1 {backend}"


@pytest.mark.slow
@pytest.mark.parametrize("package", ["dm_control", "gym_aloha", "mujoco"])
def test_a_missing_package_is_one_line_with_the_remedy(package):
    printed = python(
        f"import sys; sys.modules[{package!r}] = None\n"
        "from sim.aloha import Config, make\n"
        "try: make(Config(task='insertion'))\n"
        "except ValueError as error: print(error)"
    )
    assert f"'{package}" in printed and "pip install -e .[sim]" in printed and "\n" not in printed


def test_cameras_are_checked():
    with pytest.raises(ValueError, match="no camera 'front'; this scene has top, angle"):
        Config(task="insertion", cameras=["top", "front"])


@pytest.mark.slow
@pytest.mark.keys("env(aloha).task")
@pytest.mark.parametrize(("task", "poses"), [("transfer_cube", 7), ("insertion", 14), ("two_cubes", 14)])
def test_an_observation_has_the_documented_arrays(task, poses):
    observation = make(Config(task=task)).reset(5)
    instruction = observation.pop("instruction")
    assert instruction == ALONE.get(task, "lift the red cube with the right hand")
    assert {key: (value.shape, value.dtype.name) for key, value in observation.items()} == {
        "observations/qpos": ((14,), "float64"),
        "observations/qvel": ((14,), "float64"),
        "observations/env_state": ((poses,), "float64"),
    }


@pytest.mark.slow
@pytest.mark.parametrize("task", ["transfer_cube", "insertion"])
def test_steps_as_gym_aloha_does(task, monkeypatch):
    """Same seed, same actions: positions, rewards and poses of gym-aloha's own environment, not rendering."""
    simulator()
    import gym_aloha.env
    from gym_aloha.tasks import sim as tasks

    def state(self, physics):
        images = {"top": np.zeros((480, 640, 3), np.uint8)}
        return {"agent_pos": self.get_qpos(physics), "poses": self.get_env_state(physics), "images": images}

    monkeypatch.setattr(tasks.BimanualViperXTask, "get_observation", state)
    theirs = gym_aloha.env.AlohaEnv(task)
    theirs.reset(seed=11)
    ours = make(Config(task=task))
    ours.reset(11)
    random = np.random.default_rng(0)
    for _ in range(25):
        action = HOME + random.uniform(-0.3, 0.3, 14)
        observation = ours.step(action)
        _, reward, _, _, _ = theirs.step(action)
        physics = theirs._env.physics
        assert np.array_equal(observation["observations/qpos"], theirs._env.task.get_qpos(physics))
        assert np.array_equal(observation["observations/env_state"], theirs._env.task.get_env_state(physics))
        assert ours.reward == reward


@pytest.mark.slow
def test_a_reset_leaves_nothing_of_the_last_episode():
    environment = make(Config(task="transfer_cube"))
    first = environment.reset(3)
    for _ in range(10):
        environment.step(HOME + 0.3)
    again = environment.reset(3)
    assert all(np.array_equal(first[key], again[key]) for key in first)
    assert (environment.steps, environment.reward, environment.success) == (0, 0, False)


def test_two_environments_of_a_process_do_not_share_their_state():
    one, two = make(Config(task="transfer_cube")), make(Config(task="transfer_cube"))
    one.reset(1)
    kept = one.positions
    two.reset(2)
    two.step(HOME)
    assert np.array_equal(one.positions, kept)


@pytest.mark.slow
def test_actions_beyond_one_are_not_clipped():
    environment = make(Config(task="transfer_cube"))
    environment.reset(0)
    action = HOME.copy()
    action[0] = 2.5  # left waist, whose joint turns to ±3.14
    for _ in range(100):
        observation = environment.step(action)
    assert observation["observations/qpos"][0] > 2.3


@pytest.mark.parametrize("action", [np.zeros(7), np.full(14, np.nan), np.full(14, np.inf)])
def test_an_unusable_action_is_refused(action):
    environment = make(Config(task="transfer_cube"))
    environment.reset(0)
    with pytest.raises(ValueError, match="action at step 0 must be 14 finite"):
        environment.step(action)


def test_strict_success_of_the_cube_is_read_off_the_contacts(monkeypatch):
    """By hand: every combination of the three facts, of which one is the goal."""
    module = simulator()
    environment = make(Config(task="transfer_cube"))
    environment.reset(0)
    environment.steps_to_success = 1
    left = ("red_box", "vx300s_left/10_left_gripper_finger")
    right = ("red_box", "vx300s_right/10_left_gripper_finger")
    table = ("red_box", "table")
    for touching in ({left}, {left, right}, {left, table}, {right}, {table}, set(), {left, right, table}):
        monkeypatch.setattr(module, "contacts", lambda physics, touching=touching: touching)
        assert environment.strict_success == (touching == {left})


def test_peg_to_pin_by_hand():
    """The pin's face is 40 mm from the socket's middle, the peg's end 60 mm from the peg's."""
    module = simulator()
    environment = make(Config(task="insertion"))
    environment.reset(0)
    physics = environment.physics

    def distance(peg: list[float]) -> float:
        physics.data.qpos[16:] = [*peg, 1, 0, 0, 0, -0.1, 0.5, 0.2, 1, 0, 0, 0]
        physics.forward()
        return module.peg_to_pin(physics)

    assert distance([0.0, 0.5, 0.2]) == pytest.approx(0.0)  # 100 mm apart: touching
    assert distance([0.003, 0.501, 0.2]) == pytest.approx(0.003)
    assert distance([0.03, 0.5, 0.2]) == np.inf  # still outside
    assert distance([0.0, 0.53, 0.2]) == np.inf  # beside the socket


@pytest.mark.slow
@pytest.mark.keys("env(aloha).instruction")
def test_instructions_of_two_cubes():
    for seed in range(8):
        right, wrong, held_out = (
            make(Config(task="two_cubes", instruction=kind)) for kind in ("right", "wrong", "held_out")
        )
        starts = [environment.reset(seed) for environment in (right, wrong, held_out)]
        colour, arm = VARIANTS[seed % 4]
        texts = [observation["instruction"] for observation in starts]
        assert right.task == wrong.task == f"{colour}_{arm}" and right.variants == 4
        assert texts[0] in [phrasing.format(colour=colour, arm=arm) for phrasing in PHRASINGS[:-1]]
        assert texts[2] == PHRASINGS[-1].format(colour=colour, arm=arm)
        assert wrong.instructed != (colour, arm) and all(word in texts[1] for word in wrong.instructed)
        poses = [observation["observations/env_state"] for observation in starts]
        assert np.array_equal(poses[0], poses[1]) and np.array_equal(poses[0], poses[2])


def test_the_start_of_two_cubes_does_not_tell_the_instruction():
    """The poses of a seed are drawn alike whatever it asks for: either cube may be in front."""
    starts = np.stack([simulator().sample_poses("two_cubes", seed) for seed in range(200)])
    red_in_front = starts[:, 1] < starts[:, 8]
    assert np.abs(starts[:, 1] - starts[:, 8]).min() >= 0.08
    for variant in range(4):
        assert 0.25 < red_in_front[variant::4].mean() < 0.75


def test_the_blue_cube_is_like_the_red_one():
    model = simulator().compiled_model("two_cubes", "joint")
    red, blue = model.body("box"), model.body("blue_cube")
    assert red.mass == blue.mass == 0.05 and np.array_equal(red.inertia, blue.inertia)
    one, other = model.geom("red_box"), model.geom("blue_box")
    assert all(
        np.array_equal(getattr(one, key), getattr(other, key)) for key in ("size", "friction", "solref", "solimp")
    )


def test_success_of_two_cubes_is_read_off_contacts_and_heights(monkeypatch):
    """By hand: the left arm shall lift the red cube; seed 0 asks for that."""
    from sim.aloha import two_cubes

    environment = make(Config(task="two_cubes"))
    environment.reset(0)
    physics, task = environment.physics, environment._task
    left, right = (f"vx300s_{arm}/10_left_gripper_finger" for arm in ("left", "right"))

    def rewarded(red_m, blue_m, touching):
        physics.data.qpos[[18, 25]] = red_m, blue_m
        physics.forward()
        monkeypatch.setattr(two_cubes, "contacts", lambda physics: touching)
        return task.get_reward(physics), task.held(physics)

    red, blue = (left, "red_box"), (left, "blue_box")
    assert rewarded(0.02, 0.02, set()) == (0, False)
    assert rewarded(0.02, 0.02, {red}) == (2, False)
    assert rewarded(0.12, 0.02, {red}) == (4, True)
    assert rewarded(0.12, 0.12, {red}) == rewarded(0.12, 0.02, {red, blue}) == (4, False)
    assert rewarded(0.12, 0.02, {red, ("red_box", right)}) == rewarded(0.12, 0.02, {(right, "red_box")}) == (0, False)
    assert rewarded(0.02, 0.12, {blue}) == (0, False)
