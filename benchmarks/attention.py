"""Attention forth and back in float32, in torch's bfloat16, and in bfloat16 as the networks here take it.

    python benchmarks/attention.py

Rows of 4 heads of 32; milliseconds, medians with quartiles of rounds in turn. "As here" is `attention.attend`, which on
a CPU takes few tokens in float32, casts included.
"""

import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from measuring.results import options, publish
from measuring.timing import Spread, in_turns
from torch import Tensor

from hidistill.attention import attend

TOKENS = {16: 64, 64: 32, 128: 16, 256: 8, 1024: 2}
"""Tokens, and rows of so many."""


def forth_and_back(attention: Callable[..., Tensor], operands: list[Tensor]) -> Callable[[], None]:
    """A call that takes attention and its gradients."""

    def run() -> None:
        torch.autograd.grad(attention(*operands).float().sum(), operands)

    return run


def row(tokens: int, rows: int, device: str, rounds: int, clock: str) -> dict[str, object]:
    """One number of tokens in the three forms."""
    torch.manual_seed(0)
    single = [torch.randn(rows, 4, tokens, 32, device=device).requires_grad_() for _ in range(3)]
    half = [x.detach().to(torch.bfloat16).requires_grad_() for x in single]
    calls = {
        "float32": forth_and_back(F.scaled_dot_product_attention, single),
        "bfloat16, torch's": forth_and_back(F.scaled_dot_product_attention, half),
        "bfloat16, as here": forth_and_back(attend, half),
    }
    taken = in_turns(calls, rounds, clock=clock)
    found: dict[str, object] = {"rows": rows, "tokens": tokens}
    for name, values in taken.items():
        found[f"{name}, ms"] = Spread.of([1e3 * value for value in values]).text()
    return found


def main() -> None:
    """Measure and write."""
    parser = options(__doc__, "attention")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    rows = [row(tokens, rows, chosen.device, chosen.rounds, chosen.clock) for tokens, rows in TOKENS.items()]
    sys.stdout.write(publish("attention", {"Attention forth and back": rows}, chosen.out))


if __name__ == "__main__":
    main()
