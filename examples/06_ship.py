"""Ship: an ONNX file that was proven to answer as the model does, before it got its name.

python examples/06_ship.py
"""

from pathlib import Path

import torch
from torchvision.models import squeezenet1_1

from graftlib import export_onnx

Path("out").mkdir(exist_ok=True)
model = squeezenet1_1(num_classes=10).eval()
report = export_onnx(model, "out/slim.onnx", (torch.randn(2, 3, 32, 32),))
print(report)

assert report.max_rel_difference < 1e-4
