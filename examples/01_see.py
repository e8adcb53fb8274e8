"""See: a model as a graph of layers, without its memory and without its weights.

python examples/01_see.py
"""

import torch
from torchvision.models import resnet50

from graftlib import trace

with torch.device("meta"):  # shapes alone: a model of any size is seen on any machine
    model = resnet50()
    image = torch.empty(2, 3, 224, 224)

graph = trace(model, (image,))
print(graph)

for parameter in graph.parameters("layer4.*.conv?.weight"):
    print(parameter.fqn, parameter.shape, parameter.kind, f"depth {parameter.depth:.2f}")
