"""What a whole training imports: once, in the process that the ranks of the tests are copies of."""

import sklearn.datasets
import torch._dynamo
import torch.distributed.checkpoint
import torch.distributed.pipelining
import torch.distributed.tensor.parallel
from forgepress.compression import structure, techniques
from forgepress.parallel import fully_sharded, linked, links, pipeline, spread, ties
from forgepress.trainer import loop, models, report, summary_table

LOADED = (sklearn.datasets, torch, structure, loop, models, report, summary_table)
SPREAD = (fully_sharded, linked, links, pipeline, spread, ties)  # a mesh imports what it needs of them
techniques()  # imports each of them
