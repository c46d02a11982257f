"""Exact ranks and the exact 50 best items against the bare product of the same tiles.

``python tests/benchmarks/ranks.py`` runs them by turns in one process and prints a table and, as its last line, one
JSON object. Scores are those of random unit vectors: no target is an outlier, so the ranks are anywhere.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.measuring import alternate, peak_mib, ratio

from retilt.models import tiles
from retilt.models.softmax import CatalogueSoftmax, Rows


def product(hidden_ND: Tensor, rows_RD: Tensor) -> None:
    """Logits tile by tile, in float32, with nothing else."""
    buffer = torch.empty(tiles.TILE_ROWS * tiles.TILE_POSITIONS)
    for some in tiles.parts(len(rows_RD), tiles.TILE_ROWS):
        for at in tiles.parts(len(hidden_ND), tiles.TILE_POSITIONS):
            rows_KD, hidden_PD = rows_RD[some], hidden_ND[at]
            out = buffer[: len(hidden_PD) * len(rows_KD)].view(len(hidden_PD), len(rows_KD))
            torch.mm(hidden_PD, rows_KD.T, out=out)


def main() -> None:
    """Run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--positions", type=int, default=512)
    parser.add_argument("--seen", type=int, default=100, help="items of the history at each position")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=5)
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    torch.manual_seed(0)
    hidden = 20 * normalize(torch.randn(flags.positions, flags.width), dim=1)
    rows = 0.02 * torch.randn(flags.items, flags.width)
    item = torch.randint(len(rows), (flags.positions,))
    seen = torch.randint(len(rows), (flags.positions * flags.seen,))
    length = torch.full((flags.positions,), flags.seen)
    found = CatalogueSoftmax(hidden.double(), rows, Rows(0, len(rows), torch.zeros(len(rows)), False))
    ways = {
        "product": lambda: product(hidden, rows),
        "ranks": lambda: found.ranks(item, seen, length),
        "top": lambda: found.top_k(50, seen, length),
    }
    times = alternate(ways, flags.pairs)
    result: dict[str, object] = vars(flags)
    for name in ("ranks", "top"):
        result[f"{name}_over_product"] = ratio(times[name], times["product"])
        with peak_mib() as peak:
            ways[name]()
        result[f"{name}_mib"] = peak[0]
    for name, value in result.items():
        print(f"{name:20} {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
