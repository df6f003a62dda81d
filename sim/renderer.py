"""Render frames of a MuJoCo scene off-screen. OpenGL is loaded by the first `Renderer`."""

from __future__ import annotations

import atexit
import ctypes
import os
import weakref

import mujoco
import numpy as np

SAMPLES = 4  # of a pixel, where edges are antialiased; MuJoCo's default
MOST_GEOMS = 1000  # of the scene and its decorations; the ALOHA scenes have about a hundred


class Renderer:
    """Render fixed cameras of one scene in one size, always with the same flags.

    Raises:
        ValueError: the library that MUJOCO_GL names, or EGL and else OSMesa, cannot render here.
    """

    def __init__(self, model: mujoco.MjModel, height: int, width: int, shadows: bool, antialias: bool = True) -> None:
        self._model = model
        self._gl = None  # nothing to close yet if the next lines fail
        # The buffer's size and samples are read when the context is created: one that is just large enough is fastest.
        model.vis.global_.offheight, model.vis.global_.offwidth = height, width
        model.vis.quality.offsamples = SAMPLES if antialias else 0
        self._gl = _create_context(model.vis.global_.offheight, model.vis.global_.offwidth)
        self._gl.make_current()
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(model, MOST_GEOMS)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._scene.flags[flag] = shadows
        self._option = mujoco.MjvOption()
        self._rectangle = mujoco.MjrRect(0, 0, width, height)
        # mujoco.egl closes the display at exit, and contexts must be freed before; atexit calls the newest function
        # first.
        atexit.register(_close_living, weakref.ref(self))

    def render(self, data: mujoco.MjData, camera: str) -> np.ndarray:
        """The camera's view of `data`: (height, width, 3) uint8, first row on top."""
        self._gl.make_current()  # another renderer of this process may have been used since
        view = mujoco.MjvCamera()
        view.type = mujoco.mjtCamera.mjCAMERA_FIXED
        view.fixedcamid = self._model.camera(camera).id
        mujoco.mjv_updateScene(self._model, data, self._option, None, view, mujoco.mjtCatBit.mjCAT_ALL, self._scene)
        mujoco.mjr_render(self._rectangle, self._scene, self._context)
        frame = np.empty((self._rectangle.height, self._rectangle.width, 3), np.uint8)
        mujoco.mjr_readPixels(frame, None, self._rectangle, self._context)
        return frame[::-1].copy()  # OpenGL's first row is the lowest

    def close(self) -> None:
        """Free the frame buffers; calling it again does nothing."""
        if self._gl is not None:
            # Contexts number their buffers alike: in the context of another renderer, its buffers would be freed.
            self._gl.make_current()
            self._context.free()
            self._gl.free()
            self._gl = None

    def __del__(self) -> None:
        self.close()


def _close_living(reference: weakref.ref[Renderer]) -> None:
    if (renderer := reference()) is not None:
        renderer.close()


def _create_context(height: int, width: int):
    """An OpenGL context of the library that MUJOCO_GL names; when it is not set EGL, else OSMesa."""
    chosen = os.environ.get("MUJOCO_GL", "").strip().lower()
    library = chosen or ("egl" if _loads("libEGL.so.1") else "osmesa")
    if library not in ("egl", "osmesa"):
        raise ValueError(f"MUJOCO_GL={library} cannot render off-screen here: set it to egl or osmesa")
    try:
        if library == "egl":
            from mujoco.egl import GLContext

            GLContext._context = None  # its __del__ reads this even when __init__ failed, and prints an error
        else:
            from mujoco.osmesa import GLContext
        return GLContext(width, height)
    # PyOpenGL reports a missing library as ImportError, AttributeError, GLError …
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        other = "osmesa (libosmesa6)" if library == "egl" else "egl (libegl1)"
        raise ValueError(
            f"cannot render with {library} ({reason}): install its library, or set MUJOCO_GL to {other}, "
            "or do without cameras"
        ) from error


def _loads(library: str) -> bool:
    # Tested before the import of PyOpenGL, which binds to one library until the process ends.
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
