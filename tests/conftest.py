"""Shapes in signatures are checked while tests run, unless HIDISTILL_SHAPES=0: torch.compile cannot trace that."""

import os

import pytest
import torch

if os.environ.get("HIDISTILL_SHAPES", "1") == "1":
    from jaxtyping import install_import_hook

    hook = install_import_hook("hidistill", "beartype.beartype")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    torch.set_num_threads(1)
