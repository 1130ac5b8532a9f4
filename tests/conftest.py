"""What all tests share: one thread per process, so that numbers and times do not depend on the machine's cores."""

import torch

torch.set_num_threads(1)
