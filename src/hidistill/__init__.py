"""Turn a pretrained diffusion or flow model into a one-step generator by Hierarchical Distillation (arXiv 2511.08930).

A teacher is a velocity field. A student is a flow map. An objective turns a batch into a loss per sample.
A stage says who moves, down which objective, how often. A recipe is a function that puts them together.
"""

__version__ = "0.1.0"
