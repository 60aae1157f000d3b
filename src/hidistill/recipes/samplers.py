"""How those who are judged draw: a teacher by Euler's method, a student by jumps, in one precision or the other."""

from collections.abc import Sequence
from functools import partial

from hidistill.evaluate import Contestant
from hidistill.guidance import Guided
from hidistill.sampling import euler, grid, jump, renoise
from hidistill.seeds import fold_in, normal
from hidistill.train.loop import autocast
from hidistill.types import Cond, Points, Student, Teacher


def of_student(noise: Points, cond: Cond, *, student: Student, times: Sequence[float], precision: str) -> Points:
    """Samples of a student along the given times."""
    with autocast(precision, noise.device.type):
        return jump(student, noise, cond=cond, times=times).float()


def of_student_renoised(
    noise: Points, cond: Cond, *, student: Student, times: Sequence[float], precision: str
) -> Points:
    """Samples of a student that goes to the data at every step, and back to the next time with fresh noise.

    A row's fresh noise is drawn from a seed that its first noise gives, so that its image depends on that alone.
    """
    rows = [row.flatten()[:4].tolist() for row in noise.cpu()]
    fresh = [
        normal([fold_in(0, "renoise", step, repr(row)) for row in rows], noise.shape[1:]).to(noise)
        for step in range(len(times) - 2)
    ]
    with autocast(precision, noise.device.type):
        return renoise(student, noise, cond=cond, times=times, fresh=fresh).float()


def of_teacher(noise: Points, cond: Cond, *, teacher: Teacher, scale: float, steps: int, precision: str) -> Points:
    """Samples of the guided teacher by Euler's method."""
    with autocast(precision, noise.device.type):
        return euler(Guided(teacher, scale=scale), noise, cond=cond, steps=steps).float()


def teacher_row(teacher: Teacher, *, scale: float, steps: int, precision: str) -> Contestant:
    """The guided teacher as a contestant."""
    plural = "step" if steps == 1 else "steps"
    sample = partial(of_teacher, teacher=teacher, scale=scale, steps=steps, precision=precision)
    nfe = steps if scale == 1.0 else 2 * steps
    return Contestant(f"teacher, scale {scale:g}, {steps} {plural}", sample, nfe, steps, "teacher", scale)


def student_row(name: str, student: Student, *, steps: int, precision: str) -> Contestant:
    """A student as a contestant."""
    plural = "step" if steps == 1 else "steps"
    sample = partial(of_student, student=student, times=grid(steps), precision=precision)
    return Contestant(f"{name}, {steps} {plural}", sample, steps, steps)


def renoised_row(name: str, student: Student, *, steps: int, precision: str) -> Contestant:
    """A student as a contestant that re-noises between its steps."""
    sample = partial(of_student_renoised, student=student, times=grid(steps), precision=precision)
    return Contestant(f"{name}, {steps} steps re-noised", sample, steps, steps)
