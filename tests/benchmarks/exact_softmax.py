"""The exact softmax against the matrix products it needs, and against cross-entropy on full logits; its memory.

``python tests/benchmarks/exact_softmax.py`` times, by turns in one process, forward and backward of the softmax over
``--items`` rows and the four products of the same tiles with nothing else; then, at a tenth of the items, the softmax
and ``cross_entropy`` on the whole matrix of logits. A step with a sharded table, its update included, is run for its
peak memory. Prints a table and, as its last line, one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.measuring import alternate, peak_mib, ratio

from retilt.models import tiles
from retilt.models.catalog import ShardedTable
from retilt.models.softmax import CatalogueSoftmax, Rows


def products(hidden_ND: Tensor, rows_RD: Tensor) -> None:
    """Logits twice, and the gradients of hidden states and rows, tile by tile."""
    grad_hidden_ND, grad_rows_RD = torch.zeros_like(hidden_ND), torch.zeros_like(rows_RD)
    buffer = torch.empty(tiles.TILE_ROWS * tiles.TILE_POSITIONS)
    for backward in (False, True):
        for some in tiles.parts(len(rows_RD), tiles.TILE_ROWS):
            for at in tiles.parts(len(hidden_ND), tiles.TILE_POSITIONS):
                rows_KD, hidden_PD = rows_RD[some], hidden_ND[at]
                p = buffer[: len(hidden_PD) * len(rows_KD)].view(len(hidden_PD), len(rows_KD))
                torch.mm(hidden_PD, rows_KD.T, out=p)
                if backward:
                    grad_hidden_ND[at].addmm_(p, rows_KD)
                    grad_rows_RD[some].addmm_(p.T, hidden_PD)


def tiled(hidden_ND: Tensor, rows_RD: Tensor, item_N: Tensor) -> None:
    """Forward and backward of the exact softmax."""
    cover = Rows(0, len(rows_RD), torch.zeros(len(rows_RD)), False)
    leaves = [hidden_ND.detach().requires_grad_(), rows_RD.detach().requires_grad_()]
    CatalogueSoftmax(leaves[0], leaves[1], cover).log_prob(item_N).sum().backward()


def full(hidden_ND: Tensor, rows_RD: Tensor, item_N: Tensor) -> None:
    """The same over the whole matrix of logits."""
    leaves = [hidden_ND.detach().requires_grad_(), rows_RD.detach().requires_grad_()]
    logits = leaves[0] @ normalize(leaves[1], dim=1).T
    cross_entropy(logits, item_N, reduction="sum").backward()


def sharded(items: int, width: int, item_N: Tensor, steps: int) -> dict[str, float]:
    """Seconds of a step's update and MiB beyond table and optimizer, of a table that one process holds."""
    table = ShardedTable(items, width, 0, 0.05, torch.device("cpu"))
    cover, updates = Rows(table.first, table.last, torch.zeros(items + 1), True), []
    with peak_mib() as peak:
        for _ in range(steps):
            found, rows = table.lookup(item_N, own=True)
            softmax = CatalogueSoftmax(20 * normalize(found, dim=1), rows, cover)
            del rows
            softmax.log_prob(item_N.roll(1)).sum().backward()
    gradient = torch.rand(items + 1, width)
    for _ in range(steps):
        began = time.perf_counter()
        table.update(gradient)
        updates.append(time.perf_counter() - began)
    return {"update_seconds": min(updates), "peak_mib": peak[0], "shard_mib": items * width * 4 / 2**20}


def main() -> None:
    """Run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--positions", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=5)
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    torch.manual_seed(0)
    hidden = 20 * normalize(torch.randn(flags.positions, flags.width), dim=1)
    rows = 0.02 * torch.randn(flags.items, flags.width)
    item = torch.randint(len(rows) // 10, (flags.positions,))
    some = rows[: len(rows) // 10].clone()
    result: dict[str, object] = vars(flags)
    ways = {"products": partial(products, hidden, rows), "softmax": partial(tiled, hidden, rows, item)}
    big = alternate(ways, flags.pairs)
    ways = {"full": partial(full, hidden, some, item), "softmax": partial(tiled, hidden, some, item)}
    small = alternate(ways, flags.pairs)
    result["softmax_over_products"] = ratio(big["softmax"], big["products"])
    result["full_over_softmax"] = ratio(small["full"], small["softmax"])
    peaks = {}
    for name, run in (("softmax", tiled), ("full", full)):
        with peak_mib() as peak:
            run(hidden, some, item)
        peaks[name] = peak[0]
    result["mib_beyond_inputs"] = peaks
    del rows, some, ways
    result["sharded"] = sharded(flags.items, flags.width, item, 2)
    for name, value in result.items():
        print(f"{name:24} {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
