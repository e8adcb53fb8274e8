"""Choose: which parameters of two models exchange knowledge, by rules or by similarity.

python examples/02_choose.py
"""

from pathlib import Path

import torch
from torchvision.models import mobilenet_v2, resnet18

from graftlib import Mapping, trace

image = torch.randn(2, 3, 64, 64)
source = trace(resnet18(), (image,))
target = trace(mobilenet_v2(), (image,))

mapping = Mapping(source, target)
mapping.link("fc", "classifier.1", direction="both")  # a module's name means its weight
mapping.link("layer4.*.conv2", "features.1[67].conv.2", pair="all")
mapping.auto(kind="conv", limit=3)  # and three pairs more, by kind, shape and depth
print(mapping)

Path("out").mkdir(exist_ok=True)
mapping.save("out/chosen.yaml")
assert Mapping.load("out/chosen.yaml", source, target).pairs[0].source.fqn == "fc.weight"
