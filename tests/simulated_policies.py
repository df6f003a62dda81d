"""Policies and tasks for worker processes: what a spawned process runs must live in a module it can import."""

import multiprocessing
import os
import signal
import time

import numpy as np

from sim.aloha.expert import plan

HOME = np.array([0, -0.96, 1.16, 0, -0.3, 0, 0.1] * 2)  # joint targets of the arms' starting posture


class Still:
    """Keeps both arms where they start."""

    def reset(self):
        pass

    def __call__(self, observation):
        return HOME


class Broken(Still):
    def __call__(self, observation):
        return np.full(14, np.nan)


class Expert:
    """The scripted expert: plans on an episode's first observation, then plays the plan without looking."""

    def __init__(self, config, jitter):
        self.config, self.jitter = config, jitter

    def reset(self):
        self.actions = None

    def __call__(self, observation):
        if self.actions is None:
            poses = observation["observations/env_state"]
            random = np.random.default_rng(poses.view(np.uint32))  # the same start draws the same jitter
            self.actions = iter(plan(self.config, poses, random, self.jitter)[0])
        return next(self.actions)


def counted_still(log):
    """Makes a policy and says so in a file, a line each time."""
    with open(log, "a") as file:
        file.write(f"{os.getpid()}\n")
    return Still()


def doubling():
    return double


def double(number):
    if number == 13:
        raise ValueError("thirteen is unlucky")
    if number == 14:
        raise KeyError("no fourteen")
    if number == 15:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * number, os.getpid(), os.environ.get("OMP_NUM_THREADS")


def filling():
    return bytes


def locking():
    global lock
    lock = multiprocessing.Lock()  # a semaphore of the system, as every progress bar has one
    return double


def sleeping():
    return sleep


def sleep(folder):
    """Write a file named after this process, then work for longer than any test waits."""
    (folder / str(os.getpid())).touch()
    time.sleep(600)
