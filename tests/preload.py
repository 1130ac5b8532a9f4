"""What a whole training imports: once, in the process that the ranks of the tests are copies of."""

import gc
from contextlib import suppress

import pytest  # functions that travel by value were defined where it is
import sklearn.datasets
import torch._dynamo
import torch.distributed.checkpoint
import torch.distributed.pipelining
import torch.distributed.tensor.parallel
from forgepress.compression import structure, techniques
from forgepress.dataloading.digits import digits_source
from forgepress.parallel import fully_sharded, linked, links, pipeline, spread, ties
from forgepress.trainer import loop, models, report, summary_table

LOADED = (pytest, sklearn.datasets, torch, structure, loop, models, report, summary_table)
SPREAD = (fully_sharded, linked, links, pipeline, spread, ties)  # a mesh imports what it needs of them
techniques()  # imports each of them
digits_source("train")  # reads the file
with suppress(ImportError):
    import accelerate  # noqa: F401
    import deepspeed.runtime.zero.muon.muon_optimizer  # with it torch's compiler, three seconds  # noqa: F401
# On shapes alone, for what torch imports and remembers of the operations: a third of a short training's time.
for spec in (
    "lenet_300_100",
    {"factory": "forgepress.tests.techniques:attentive", "args": {"width": 8, "heads": 2}},
):
    small = models.build_model(spec, data={"input_shape": (1, 8, 8), "classes": 10})
    small.summed(small.layout.tensor_plan, 2, frozenset())
    small.stage_costs()
gc.collect()
gc.freeze()  # what is there from the start is not looked at again: a collection after each task then costs little
