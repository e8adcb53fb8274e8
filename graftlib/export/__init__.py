"""ship: a model -> an ONNX file that was proven to answer as the model does."""

from .report import Comparison as Comparison
from .report import ExportReport as ExportReport
from .report import Measurement as Measurement
from .ship import export_onnx as export_onnx

__all__ = ["Comparison", "ExportReport", "Measurement", "export_onnx"]
