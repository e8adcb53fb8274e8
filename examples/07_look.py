"""Look: two models side by side and the links between them, as one page that works offline.

python examples/07_look.py
"""

from pathlib import Path

import torch
from torchvision.models import mobilenet_v2, resnet18

from graftlib import Mapping, trace, view

image = torch.randn(2, 3, 64, 64)
source, target = trace(resnet18(), (image,)), trace(mobilenet_v2(), (image,))
mapping = Mapping(source, target).auto(kind="conv", limit=8)

Path("out").mkdir(exist_ok=True)
view(source, target, mapping).save("out/mapping.html")
print("open out/mapping.html in a browser")
