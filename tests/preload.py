"""What a whole training imports: once, in the process that the ranks of the tests are copies of."""

import sklearn.datasets
import torch._dynamo
import torch.distributed.checkpoint
import torch.distributed.pipelining
from forgepress.compression import structure, techniques
from forgepress.parallel import links, spread
from forgepress.trainer import loop, models, report, summary_table

LOADED = (sklearn.datasets, torch, structure, links, spread, loop, models, report, summary_table)
techniques()  # imports each of them
