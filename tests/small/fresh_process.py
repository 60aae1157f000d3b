"""What stock diffusers draws in a process that never saw this package."""

import json
import subprocess
import sys

import torch
from safetensors.torch import load_file, save_file

SCRIPT = """
import json, sys
import diffusers, torch
from safetensors.torch import load_file, save_file

diffusers.utils.logging.set_verbosity_error()
for job in json.load(open(sys.argv[1])):
    pipeline = getattr(diffusers, job["pipeline"]).from_pretrained(job["folder"], **dict.fromkeys(job["null"]))
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    call = job["call"] | load_file(job["tensors"])
    images = pipeline(**call, generator=generator, num_inference_steps=1).images
    if not isinstance(images, torch.Tensor):  # what older DiTPipelines give
        images = torch.from_numpy(images).movedim(-1, 1)
    save_file({"images": images.contiguous()}, job["tensors"])
assert not any(name.startswith("hidistill") for name in sys.modules)
"""


def in_a_fresh_process(tmp_path, jobs):
    """The images of each job: (folder, class of its pipeline, arguments, parts left out)."""
    listed = []
    for index, (folder, pipeline, call, null) in enumerate(jobs):
        place = tmp_path / f"{index}.safetensors"
        tensors = {key: value.contiguous() for key, value in call.items() if isinstance(value, torch.Tensor)}
        save_file(tensors, place)
        rest = {key: value for key, value in call.items() if key not in tensors}
        listed.append({"folder": str(folder), "pipeline": pipeline, "call": rest, "null": null, "tensors": str(place)})
    (tmp_path / "jobs.json").write_text(json.dumps(listed))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "jobs.json")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [load_file(job["tensors"])["images"] for job in listed]
