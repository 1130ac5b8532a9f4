"""How far does network surgery take LeNet-300-100 on MNIST? Three seeds of examples/surgery_lenet300.yaml.

The settings were found with another seed; the error is that of the last step, of the reloaded artifact, on the 10,000
test images. Runs that are finished already (in --runs) are not trained again.
"""

import sys

from forgepress.benchmarks import _surgery

if __name__ == "__main__":
    question = "How far does network surgery take LeNet-300-100 (266,610 weights) on MNIST?"
    sys.exit(_surgery.main(__file__, question, "surgery_lenet300.yaml", (56.0, 1.99)))
