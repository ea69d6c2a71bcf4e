"""The MobileNets: v1 (2017), v2 (2018) and v3 (2019), each in its file, by name.

`_cifar` marks networks for images of 32 pixels, which the papers don't have: the first two strides
are 1, so that the last features are 4x4, and v1 has half, v2 a third of its widths.
"""

from functools import partial

from mobilenet.layers import folded as folded
from mobilenet.v1 import mobilenet_v1, mobilenet_v1_cifar
from mobilenet.v2 import mobilenet_v2, mobilenet_v2_cifar
from mobilenet.v3 import mobilenet_v3_cifar, mobilenet_v3_large, mobilenet_v3_small

MODELS = {
    "mobilenet_v1_cifar": mobilenet_v1_cifar,
    "mobilenet_v2_cifar": mobilenet_v2_cifar,
    "mobilenet_v3_cifar": mobilenet_v3_cifar,
    "mobilenet_v1": mobilenet_v1,
    "mobilenet_v1_075": partial(mobilenet_v1, width=0.75),
    "mobilenet_v1_050": partial(mobilenet_v1, width=0.5),
    "mobilenet_v1_025": partial(mobilenet_v1, width=0.25),
    "mobilenet_v2": mobilenet_v2,
    "mobilenet_v2_140": partial(mobilenet_v2, width=1.4),
    "mobilenet_v2_075": partial(mobilenet_v2, width=0.75),
    "mobilenet_v2_050": partial(mobilenet_v2, width=0.5),
    "mobilenet_v2_035": partial(mobilenet_v2, width=0.35),
    "mobilenet_v3_large": mobilenet_v3_large,
    "mobilenet_v3_small": mobilenet_v3_small,
}
