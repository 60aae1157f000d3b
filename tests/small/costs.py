"""What training by a method costs, from the numbers that its steps are counted to cost."""

from hidistill.experiments.methods import REFINE_COSTS, SKETCH_COSTS


def cost_of(arguments):
    """Forward passes of the student per sample."""
    sketched = SKETCH_COSTS[arguments.get("sketch", "none")] * arguments.get("sketch_steps", 0)
    if not arguments.get("refine_steps"):
        return sketched
    step = REFINE_COSTS[arguments["refine"], arguments.get("head", "none")]
    step += SKETCH_COSTS["meanflow"] / 2 if arguments.get("keep") else 0.0
    return sketched + step * arguments["refine_steps"]
